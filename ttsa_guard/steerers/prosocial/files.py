"""Read and write the files of this method; their headers say what they are and of which model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ttsa_guard.errors import ConfigError
from ttsa_guard.files import reason

FileKind = Literal["harm vector", "preference adapter"]
"""It says what a file holds."""


def save_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], *, kind: FileKind, about: Mapping[str, Any]
) -> None:
    """Write a safetensors file whose header says what it is.

    Args:
        path: the file; its folder is made if need be.
        tensors: its contents, of any shape, by name.
        kind: what it holds.
        about: what else the header says, as JSON values.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        contents = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(contents, path, metadata={"kind": kind, "about": json.dumps(dict(about))})
    except OSError as error:
        raise ConfigError(
            f"cannot write {path}: {reason(error)}", hint="name another file"
        ) from error


def load_tensors(path: Path, *, kind: FileKind) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read the tensors of such a file, and what its header says about them.

    Raises:
        ConfigError: the file cannot be read, or holds something else than a `kind`.
    """
    hint = "make one with: ttsa-guard prosocial"
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in [*file.keys()]}
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"cannot read {path}: {reason(error)}", hint=hint) from None
    if header.get("kind") != kind:
        raise ConfigError(f"{path} is no {kind}", hint=hint)
    return tensors, json.loads(header["about"])
