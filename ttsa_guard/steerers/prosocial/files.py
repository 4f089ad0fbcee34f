"""What the files of this method say about the model that they belong to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ttsa_guard.errors import ConfigError


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], *, kind: str, about: Mapping[str, Any]) -> None:
    """A safetensors file whose header says what it is.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        contents = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(contents, path, metadata={"kind": kind, "about": json.dumps(dict(about))})
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}", hint="name another file") from error


def load_tensors(path: Path, *, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors of such a file, and what it says about itself.

    Raises:
        ConfigError: it cannot be read, or is something else than a `kind`.
    """
    hint = "make one with: ttsa-guard prosocial"
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in [*file.keys()]}
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"cannot read {path}: {type(error).__name__}", hint=hint) from None
    if header.get("kind") != kind:
        raise ConfigError(f"{path} is no {kind}", hint=hint)
    return tensors, json.loads(header["about"])
