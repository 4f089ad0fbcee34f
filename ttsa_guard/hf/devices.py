"""Choose the device and the precision that a model runs in."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field

from ttsa_guard.errors import ModelError

Device = Annotated[str, Field(description="auto, cpu, cuda, cuda:1, mps, ...")]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    Field(description="auto: bfloat16 on CUDA and for GGUF files, else float32"),
]


def resolve_device(device: str) -> str:
    """Return the device that `device` names.

    "auto" is CUDA or Apple's MPS if there is one, else the CPU.

    Raises:
        ModelError: the device cannot be used.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"device {device!r} cannot be used", hint="use 'cpu' or 'auto'; see ttsa-guard doctor"
        ) from error
    return device


def resolve_dtype(dtype: str, device: str) -> torch.dtype:
    """Return the precision that `dtype` names. "auto" is bfloat16 on CUDA, else float32."""
    if dtype == "auto":
        return torch.bfloat16 if device.startswith("cuda") else torch.float32
    found: torch.dtype = getattr(torch, dtype)
    return found
