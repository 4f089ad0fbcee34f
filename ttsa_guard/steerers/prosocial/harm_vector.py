"""Subtract the harm vector, which is what parameters learn when a model is tuned on harm.

This is known of *ProSocialAlign* (arXiv 2512.06515): it takes a vector from a harm-tuned copy of
the base model, keeps the top-k dimensions, and subtracts it in parameter space. Its formula, its k
and its strength are not known to us. Ours follow the task vectors of *Safety Arithmetic* (EMNLP
2024):

    h = top_k(theta_harm - theta_base),    theta_safe = theta_base - lambda h

where top_k keeps the k entries of largest magnitude, over all parameters or within each layer.
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
from ttsa_guard.steerers.prosocial.files import FileKind, load_tensors, save_tensors

Within = Literal["all", "layer"]
"""It says among which entries the largest are kept: all of them, or those of a layer."""
KIND: FileKind = "harm vector"
_LAYER = re.compile(r"^.*?\.\d+(?=\.)")


@dataclass(frozen=True, eq=False)
class HarmVector:
    """Hold a sparse difference of parameters.

    Args:
        entries: the flattened difference of each parameter, by name: a coalesced sparse tensor
            [numel], float32 on the CPU.
        base: the `fingerprint` of the weights that it is a difference to.
        made: how it was made, for people to read.
    """

    entries: Mapping[str, torch.Tensor]
    base: str
    made: str = ""

    @classmethod
    def difference(
        cls,
        base: torch.nn.Module,
        tuned: torch.nn.Module,
        *,
        keep: float = 0.1,
        within: Within = "all",
        made: str = "",
    ) -> HarmVector:
        """Return `tuned` minus `base`, but only the share `keep` of its entries (see `top`).

        Raises:
            ConfigError: the two are of different architectures.
        """
        ours, theirs = dict(base.named_parameters()), dict(tuned.named_parameters())
        if {n: p.shape for n, p in ours.items()} != {n: p.shape for n, p in theirs.items()}:
            raise ConfigError(
                "the tuned model has other parameters than the base",
                hint="tune a copy of the base itself",
            )
        dense = {
            n: (theirs[n].detach().float() - p.detach().float()).flatten().cpu()
            for n, p in ours.items()
        }
        whole = cls(
            {n: d.to_sparse().coalesce() for n, d in dense.items()}, fingerprint(base), made
        )
        return whole.top(keep, within=within)

    # ------------------------------------------------------------------ arithmetic

    def top(self, keep: float, *, within: Within = "all") -> HarmVector:
        """Keep only the entries of largest magnitude.

        Args:
            keep: the share of the entries to keep, in (0, 1]; entries that are zero count, too.
            within: whether that is the share of all entries, or of those of each layer.

        Raises:
            ConfigError: `keep` is out of range.
        """
        if not 0 < keep <= 1:
            raise ConfigError(
                f"a share of {keep:g} of the entries cannot be kept", hint="give one in (0, 1]"
            )
        groups: dict[str, list[str]] = {}
        for name in self.entries:
            layer = _LAYER.match(name)
            groups.setdefault(layer.group() if layer and within == "layer" else "", []).append(name)
        kept: dict[str, torch.Tensor] = {}
        for names in groups.values():
            sizes = torch.cat([self.entries[n].values().abs() for n in names])
            most = max(1, round(keep * sum(self.entries[n].shape[0] for n in names)))
            least = sizes.topk(most).values[-1] if most < len(sizes) else torch.tensor(0.0)
            kept |= {
                n: _where(self.entries[n], self.entries[n].values().abs() >= least) for n in names
            }
        return replace(self, entries={n: kept[n] for n in self.entries})

    def __add__(self, other: HarmVector) -> HarmVector:
        self._comparable(other)
        entries = {n: (e + other.entries[n]).coalesce() for n, e in self.entries.items()}
        return HarmVector(entries, self.base, f"({self.made}) + ({other.made})")

    def __sub__(self, other: HarmVector) -> HarmVector:
        return self + other * -1.0

    def __mul__(self, factor: float) -> HarmVector:
        return HarmVector(
            {n: (e * factor).coalesce() for n, e in self.entries.items()},
            self.base,
            f"{factor:g} ({self.made})",
        )

    __rmul__ = __mul__

    def norm(self) -> float:
        """Return the Euclidean norm of all entries."""
        return math.sqrt(self.dot(self))

    def dot(self, other: HarmVector) -> float:
        """Return the scalar product.

        Raises:
            ConfigError: the two belong to different models.
        """
        self._comparable(other)
        return sum(
            float((e * other.entries[n]).coalesce().values().double().sum())
            for n, e in self.entries.items()
        )

    def cosine(self, other: HarmVector) -> float:
        """Return the cosine of the angle to `other`, in [-1, 1]; 0 if either is zero."""
        norms = self.norm() * other.norm()
        return self.dot(other) / norms if norms else 0.0

    def __len__(self) -> int:
        """Return the number of entries that are not zero."""
        return sum(int((e.values() != 0).sum()) for e in self.entries.values())

    def _comparable(self, other: HarmVector) -> None:
        if self.base != other.base:
            raise ConfigError(
                "the harm vectors belong to different models", hint="make both from one base"
            )

    # ------------------------------------------------------------------ use

    @contextmanager
    def subtracted(self, model: torch.nn.Module, strength: float = 1.0) -> Iterator[None]:
        """Take `strength` times this from `model` for a while.

        Afterwards its weights are bit for bit what they were. Nothing else may use the model
        meanwhile. Whether it is the right model is not checked here: see `check`.
        """
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
        """Check that this is a difference to the model with the fingerprint `weights`.

        Raises:
            ConfigError: it is not.
        """
        check_base("harm vector", self.base, weights)

    # ------------------------------------------------------------------ files

    def save(self, path: Path) -> None:
        """Write the vector as safetensors, about six bytes an entry.

        Positions are int32 where they fit, values are float16.

        Raises:
            ConfigError: the file cannot be written.
        """
        tensors: dict[str, torch.Tensor] = {}
        for name, entries in self.entries.items():
            kind = torch.int32 if entries.shape[0] < 2**31 else torch.int64
            tensors |= {
                f"{name}:at": entries.indices()[0].to(kind),
                f"{name}:value": entries.values().half(),
            }
        sizes = {name: entries.shape[0] for name, entries in self.entries.items()}
        save_tensors(
            path,
            tensors,
            kind=KIND,
            about={"base": self.base, "made": self.made, "kept": len(self), "sizes": sizes},
        )

    @classmethod
    def load(cls, path: Path) -> HarmVector:
        """Read a vector that `save` wrote.

        Raises:
            ConfigError: the file cannot be read, or is something else.
        """
        tensors, about = load_tensors(path, kind=KIND)
        entries = {
            name: (
                torch.sparse_coo_tensor(
                    tensors[f"{name}:at"].long()[None],
                    tensors[f"{name}:value"].float(),
                    (size,),
                    check_invariants=True,
                ).coalesce()
            )
            for name, size in about["sizes"].items()
        }
        return cls(entries, about["base"], about["made"])


def check_base(what: str, base: str, weights: str) -> None:
    """Check that `what` was made for the model that it is used with.

    Args:
        what: what it is called in the message.
        base: the fingerprint of the weights that it was made for.
        weights: the fingerprint of the model's weights.

    Raises:
        ConfigError: the two differ.
    """
    if base != weights:
        raise ConfigError(
            f"the {what} was made for another model: its base has the fingerprint {base[:12]}, this"
            f" model {weights[:12]}",
            hint="make one for this model with: ttsa-guard prosocial",
        )


def _where(entries: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Return the sparse `entries` [numel] with only the `kept` of their values, bool [nnz]."""
    return torch.sparse_coo_tensor(
        entries.indices()[:, kept], entries.values()[kept], entries.shape, check_invariants=True
    ).coalesce()
