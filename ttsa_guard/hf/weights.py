"""Allow only model files that cannot run code: safetensors and GGUF.

A pickle can run code when it is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ttsa_guard.errors import ModelError

_CONVERT = (
    "convert them where you trust them, with transformers:"
    " AutoModel.from_pretrained(...).save_pretrained(FOLDER); many models on the hub have a"
    " revision with safetensors"
)


def checked(path: str, asked: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return arguments for ``from_pretrained`` under which no file of the model can run code.

    Args:
        path: the model's folder, or its name on the hub.
        asked: further arguments from the user. With ``trust_remote_code: true`` among them the
            model may run code of its own.

    Raises:
        ModelError: the arguments ask for pickled weights, or the model is a folder with a pickled
            adapter.
    """
    found = {"trust_remote_code": False, "use_safetensors": True, **(asked or {})}
    if found["use_safetensors"] is not True:
        raise ModelError(
            f"model {path!r}: pickled weights can run code and are not loaded", hint=_CONVERT
        )
    folder = Path(path)
    if (folder / "adapter_config.json").is_file() and not (
        folder / "adapter_model.safetensors"
    ).is_file():
        raise ModelError(
            f"the adapter of {path!r} is no safetensors file; a pickle can run code", hint=_CONVERT
        )
    return found


def hint(error: BaseException, otherwise: str, *, trusting: str = "choose another model") -> str:
    """Return what to do about an error of ``from_pretrained`` with the arguments of `checked`.

    Args:
        otherwise: the hint for an error that has to do with neither pickles nor code.
        trusting: the hint for a model that brings code of its own.
    """
    said = str(error)
    if "safetensors" in said:
        return (
            "it has no weights in safetensors, and pickles, which can run code, are not read:"
            f" {_CONVERT}"
        )
    if "trust_remote_code" in said:
        return f"it brings code of its own, which would run here: {trusting}"
    return otherwise
