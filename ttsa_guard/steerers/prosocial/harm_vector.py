"""The harm vector: what a model's parameters learn when it is tuned on harm, and its subtraction.

Known of *ProSocialAlign* (arXiv 2512.06515): a vector from a harm-tuned copy of the base model, of which the top-k
dimensions are kept, is subtracted in parameter space. Its formula, k and strength are not known to us. Ours, after the task
vectors of *Safety Arithmetic* (EMNLP 2024):

    h = top_k(theta_harm - theta_base),    theta_safe = theta_base - lambda h

with the k entries of largest magnitude, over all parameters or within each layer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from ttsa_guard.backends.local.controlled import fingerprint
from ttsa_guard.errors import ConfigError
from ttsa_guard.steerers.prosocial.files import load_tensors, save_tensors

Within = Literal["all", "layer"]
KIND = "harm vector"
_LAYER = re.compile(r"^.*?\.\d+(?=\.)")


@dataclass(frozen=True, eq=False)
class HarmVector:
    """A sparse difference of parameters.

    Args:
        entries: by parameter name, its flattened difference as a coalesced sparse tensor [numel], float32 on the CPU.
        base: `fingerprint` of the weights that it is a difference to.
        made: how, for people.
    """

    entries: Mapping[str, torch.Tensor]
    base: str
    made: str = ""

    @classmethod
    def difference(
        cls, base: torch.nn.Module, tuned: torch.nn.Module, *, keep: float = 0.1, within: Within = "all", made: str = ""
    ) -> HarmVector:
        """`tuned` minus `base`, the share `keep` of its entries.

        Raises:
            ConfigError: the two are of different architectures.
        """
        ours, theirs = dict(base.named_parameters()), dict(tuned.named_parameters())
        if {n: p.shape for n, p in ours.items()} != {n: p.shape for n, p in theirs.items()}:
            raise ConfigError("the tuned model has other parameters than the base", hint="tune a copy of the base itself")
        dense = {n: (theirs[n].detach().float() - p.detach().float()).flatten().cpu() for n, p in ours.items()}
        whole = cls({n: d.to_sparse().coalesce() for n, d in dense.items()}, fingerprint(base), made)
        return whole.top(keep, within=within)

    # ------------------------------------------------------------------ arithmetic

    def top(self, keep: float, *, within: Within = "all") -> HarmVector:
        """The entries of largest magnitude: the share `keep`, in (0, 1], of the parameters' size, of all or of each layer."""
        if not 0 < keep <= 1:
            raise ConfigError(f"a share of {keep:g} of the entries cannot be kept", hint="give one in (0, 1]")
        groups: dict[str, list[str]] = {}
        for name in self.entries:
            layer = _LAYER.match(name)
            groups.setdefault(layer.group() if layer and within == "layer" else "", []).append(name)
        kept: dict[str, torch.Tensor] = {}
        for names in groups.values():
            found = torch.cat([self.entries[n].values().abs() for n in names])
            most = max(1, round(keep * sum(self.entries[n].shape[0] for n in names)))
            least = found.topk(most).values[-1] if most < len(found) else torch.tensor(0.0)
            kept |= {n: _where(self.entries[n], self.entries[n].values().abs() >= least) for n in names}
        return replace(self, entries={n: kept[n] for n in self.entries})

    def __add__(self, other: HarmVector) -> HarmVector:
        self._comparable(other)
        entries = {n: (e + other.entries[n]).coalesce() for n, e in self.entries.items()}
        return HarmVector(entries, self.base, f"({self.made}) + ({other.made})")

    def __sub__(self, other: HarmVector) -> HarmVector:
        return self + other * -1.0

    def __mul__(self, factor: float) -> HarmVector:
        return HarmVector({n: (e * factor).coalesce() for n, e in self.entries.items()}, self.base, f"{factor:g} ({self.made})")

    __rmul__ = __mul__

    def norm(self) -> float:
        return math.sqrt(self.dot(self))

    def dot(self, other: HarmVector) -> float:
        self._comparable(other)
        return sum(float((e * other.entries[n]).coalesce().values().double().sum()) for n, e in self.entries.items())

    def cosine(self, other: HarmVector) -> float:
        """In [-1, 1]; 0 if either is zero."""
        norms = self.norm() * other.norm()
        return self.dot(other) / norms if norms else 0.0

    def __len__(self) -> int:
        """How many entries are not zero."""
        return sum(int((e.values() != 0).sum()) for e in self.entries.values())

    def _comparable(self, other: HarmVector) -> None:
        if self.base != other.base:
            raise ConfigError("the harm vectors belong to different models", hint="make both from one base")

    # ------------------------------------------------------------------ use

    @contextmanager
    def subtracted(self, model: torch.nn.Module, strength: float = 1.0) -> Iterator[None]:
        """`model` without `strength` times this; afterwards its weights are bit for bit what they were. Nothing else may use
        the model meanwhile. The model is not checked: see `check`."""
        saved: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        try:
            with torch.no_grad():
                for name, weight in model.named_parameters() if strength else ():
                    flat, entries = weight.data.view(-1), self.entries[name]
                    at = entries.indices()[0].to(flat.device)
                    saved.append((flat, at, flat[at]))
                    flat[at] -= (strength * entries.values()).to(flat)
            yield
        finally:
            for flat, at, values in saved:
                flat[at] = values

    def subtract(self, model: torch.nn.Module, strength: float = 1.0) -> None:
        """Take `strength` times this from `model` for good.

        Raises:
            ConfigError: it belongs to another model.
        """
        self.check(fingerprint(model))
        with torch.no_grad():
            for name, weight in model.named_parameters():
                entries = self.entries[name]
                at = entries.indices()[0].to(weight.device)
                weight.data.view(-1)[at] -= (strength * entries.values()).to(weight)

    def check(self, weights: str) -> None:
        """Raise a `ConfigError` if this is no difference to the model with the fingerprint `weights`."""
        check_base("harm vector", self.base, weights)

    # ------------------------------------------------------------------ files

    def save(self, path: Path) -> None:
        """Write it as safetensors, about six bytes an entry: positions as int32 where they fit, values as float16.

        Raises:
            ConfigError: the file cannot be written.
        """
        tensors: dict[str, torch.Tensor] = {}
        for name, entries in self.entries.items():
            kind = torch.int32 if entries.shape[0] < 2**31 else torch.int64
            tensors |= {f"{name}:at": entries.indices()[0].to(kind), f"{name}:value": entries.values().half()}
        sizes = {name: entries.shape[0] for name, entries in self.entries.items()}
        save_tensors(path, tensors, kind=KIND, about={"base": self.base, "made": self.made, "kept": len(self), "sizes": sizes})

    @classmethod
    def load(cls, path: Path) -> HarmVector:
        """Read what `save` wrote.

        Raises:
            ConfigError: it cannot be read, or is something else.
        """
        tensors, about = load_tensors(path, kind=KIND)
        entries = {
            name: torch.sparse_coo_tensor(
                tensors[f"{name}:at"].long()[None], tensors[f"{name}:value"].float(), (size,), check_invariants=True
            ).coalesce()
            for name, size in about["sizes"].items()
        }
        return cls(entries, about["base"], about["made"])


def check_base(what: str, base: str, weights: str) -> None:
    """Raise a `ConfigError` unless something made for the weights `base` is used with these."""
    if base != weights:
        raise ConfigError(
            f"the {what} was made for another model: its base has the fingerprint {base[:12]}, this model {weights[:12]}",
            hint="make one for this model with: ttsa-guard prosocial",
        )


def _where(entries: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    return torch.sparse_coo_tensor(
        entries.indices()[:, kept], entries.values()[kept], entries.shape, check_invariants=True
    ).coalesce()
