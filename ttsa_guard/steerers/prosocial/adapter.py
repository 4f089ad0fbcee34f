"""Adapt linear layers by a small low-rank update that depends on a preference vector.

*ProSocialAlign* builds its reward model on preference-bilinear adapters (PBLoRA), which are from
*PARM*; the equation here is PARM's. The weight update of a linear layer, for a preference p over n
objectives, is

    dW(p) = s (B1 W1 A1 + B2 W2(p) A2),    W2(p) = sum_i p_i W2_i,

where A1, A2 are [r, in], B1, B2 are [out, r], and W1 and each W2_i are [r, r]. B1 and B2 begin at
zero, so that a new adapter changes nothing. Without objectives only the first term remains, which
is an ordinary low-rank adapter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from ttsa_guard.errors import ConfigError
from ttsa_guard.steerers.prosocial.files import FileKind, load_tensors, save_tensors

KIND: FileKind = "preference adapter"
_DOT = "|"  # It stands for a dot in names, because torch allows no dots in the names of modules.


@dataclass(frozen=True)
class AdapterShape:
    """Describe the size of an adapter and where it goes.

    Args:
        rank: r of both terms.
        scale: s, the factor on the update.
        objectives: n, the length of the preference vector; 0 for an adapter without one.
        targets: the last parts of the names of the linear layers that are adapted.
    """

    rank: int = 4
    scale: float = 2.0
    objectives: int = 5
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")


class _LowRank(nn.Module):
    """Hold the matrices of dW(p) of one layer."""

    def __init__(self, layer: nn.Linear, shape: AdapterShape) -> None:
        super().__init__()
        rank, self.scale = shape.rank, shape.scale

        def kaiming(*size: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*size).uniform_(-1, 1) * math.sqrt(3 / size[-1]))

        def zero(*size: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(*size))

        self.a1, self.w1, self.b1 = (
            kaiming(rank, layer.in_features),
            kaiming(rank, rank),
            zero(layer.out_features, rank),
        )
        self.conditioned = shape.objectives > 0
        if self.conditioned:
            self.a2, self.b2 = kaiming(rank, layer.in_features), zero(layer.out_features, rank)
            self.w2 = kaiming(shape.objectives, rank, rank)

    def delta(self, preference: torch.Tensor | None) -> torch.Tensor:
        """Return dW(p), [out, in], for the preference p [n]."""
        inner, outer = self.factors(preference)
        return (inner @ outer).T

    def factors(self, preference: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return factors [in, r or 2r] and [r or 2r, out] whose product is dW(p), transposed."""
        inner: list[torch.Tensor] = [self.a1]
        outer = [self.b1 @ self.w1]
        if self.conditioned:
            inner.append(self.a2)
            outer.append(self.b2 @ torch.einsum("o,oij->ij", preference, self.w2))
        return torch.cat(inner).T, self.scale * torch.cat(outer, 1).T


class Adapter(nn.Module):
    """Hold a low-rank update for some linear layers of a model, which itself stays as it is.

    Args:
        model: the model whose layers are adapted.
        shape: the size of the update and its layers.
        base: the fingerprint of the weights that it was trained on.
        made: how it was made, for people to read.
        alpha: the weight that suits it in decoding, see `product`.

    Raises:
        ConfigError: the model has no such layers.
    """

    def __init__(
        self,
        model: nn.Module,
        shape: AdapterShape,
        *,
        base: str,
        made: str = "",
        alpha: float = 1.0,
    ) -> None:
        super().__init__()
        self.shape, self.base, self.made, self.alpha = shape, base, made, alpha
        self.preference: torch.Tensor | None = None
        layers = _layers(model, shape.targets)
        self.parts = nn.ModuleDict(
            {name.replace(".", _DOT): _LowRank(layer, shape) for name, layer in layers.items()}
        )

    def prefer(self, weights: Sequence[float]) -> None:
        """Set the preference p, [n], to `weights`, one for each objective."""
        self.preference = torch.tensor(list(weights), device=next(self.parameters()).device)

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        """Run calls of `model` with the update. Nothing else may use the model meanwhile."""

        def hook(update: _LowRank) -> Any:
            return lambda _, inputs, output: (
                output + _through(inputs[0], *update.factors(self.preference))
            )

        with self._hooked(model, hook):
            yield

    @contextmanager
    def beside(self, model: nn.Module) -> Iterator[None]:
        """Run calls of `model` with the update for the second half of their batch only.

        So one pass over the weights gives the outputs with and without the update. The preference
        is the one set when this is entered. It is not for training, and nothing else may use the
        model meanwhile.
        """

        def hook(update: _LowRank) -> Any:
            factors = update.factors(self.preference)

            def add(_: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
                output.chunk(2)[1].add_(_through(inputs[0].chunk(2)[1], *factors))

            return add

        with self._hooked(model, hook):
            yield

    @contextmanager
    def _hooked(self, model: nn.Module, hook: Callable[[_LowRank], Any]) -> Iterator[None]:
        """Register the forward hook that `hook` makes of each update, and remove it afterwards."""
        layers = _layers(model, self.shape.targets)
        hooks: list[Any] = []
        try:
            for name, update in self.parts.items():
                hooks.append(
                    layers[name.replace(_DOT, ".")].register_forward_hook(
                        hook(cast(_LowRank, update))
                    )
                )
            yield
        finally:
            for added in hooks:
                added.remove()

    @torch.no_grad()
    def merge(self, model: nn.Module) -> None:
        """Add the update to the model's weights for good."""
        layers = _layers(model, self.shape.targets)
        for name, update in self.parts.items():
            weight = layers[name.replace(_DOT, ".")].weight
            weight += cast(_LowRank, update).delta(self.preference).to(weight)

    def save(self, path: Path) -> None:
        """Write the adapter as safetensors in float16.

        Raises:
            ConfigError: the file cannot be written.
        """
        tensors = {name: tensor.half() for name, tensor in self.state_dict().items()}
        about = {"base": self.base, "made": self.made, "alpha": self.alpha, **asdict(self.shape)}
        save_tensors(path, tensors, kind=KIND, about=about)

    @classmethod
    def load(cls, path: Path) -> Stored:
        """Read an adapter that `save` wrote.

        Raises:
            ConfigError: the file cannot be read, or is something else.
        """
        tensors, about = load_tensors(path, kind=KIND)
        shape = AdapterShape(
            about["rank"], about["scale"], about["objectives"], tuple(about["targets"])
        )
        return Stored(tensors, shape, about["base"], about["made"], about["alpha"])


@dataclass(frozen=True, eq=False)
class Stored:
    """Hold an adapter as it was read from a file, before it is put on a model."""

    tensors: dict[str, torch.Tensor]
    shape: AdapterShape
    base: str
    made: str
    alpha: float

    def on(self, model: nn.Module) -> Adapter:
        """Return the adapter for `model`, on its device, in float32.

        Raises:
            ConfigError: the model has no such layers, or they have other sizes.
        """
        adapter = Adapter(model, self.shape, base=self.base, made=self.made, alpha=self.alpha)
        try:
            adapter.load_state_dict({name: tensor.float() for name, tensor in self.tensors.items()})
        except RuntimeError:
            raise ConfigError(
                "the adapter does not fit the model's layers", hint="train one for this model"
            ) from None
        return adapter.to(next(model.parameters()).device).requires_grad_(False)


def _through(x: torch.Tensor, inner: torch.Tensor, outer: torch.Tensor) -> torch.Tensor:
    """Apply `inner` [in, r] and `outer` [r, out] to `x` [..., in], in the dtype of the factors."""
    return (x.to(inner.dtype) @ inner @ outer).to(x.dtype)


def _layers(model: nn.Module, targets: Sequence[str]) -> dict[str, nn.Linear]:
    """Return the linear layers whose names end with one of the `targets`, by name."""
    linear = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)
    }
    adapted = {
        name: module for name, module in linear.items() if name.rsplit(".", 1)[-1] in targets
    }
    if not adapted:
        known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear})) or "none"
        raise ConfigError(
            f"the model has no layers {', '.join(targets)}", hint=f"its linear layers are {known}"
        )
    return adapted
