"""Find and load a language model and its tokenizer.

A model is a hub name, a folder, a GGUF file, or a model that a package brings.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from ttsa_guard.errors import ModelError
from ttsa_guard.hf import weights
from ttsa_guard.hf.source import Source

_WANTED = (
    "'embedded', 'smollm2', a GGUF file, a local folder, or a name on the Hugging Face hub"
    " (offline: only its cache)"
)


def load(
    source: Source,
    *,
    device: str,
    dtype: torch.dtype,
    more: dict[str, Any] | None = None,
    kind: Any = None,
    wanted: str = _WANTED,
) -> tuple[Any, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer, and move the model to its device.

    Weights are safetensors or GGUF, never pickles.

    Args:
        kind: the class of transformers with ``from_pretrained``; by default that of causal language
            models.
        wanted: what the user has to name, for the hint if nothing is found.
        more: other arguments of ``from_pretrained``. A ``device_map`` among them places the model
            instead of `device`. Without ``trust_remote_code`` no code of the model is run.

    Raises:
        ModelError: the model cannot be loaded; the hint says what to do.
    """
    more = weights.checked(source.path, more)
    if isinstance(quantization := more.get("quantization_config"), dict):
        more["quantization_config"] = _bitsandbytes(quantization)
    tokenizer = load_tokenizer(source, code=more["trust_remote_code"], wanted=wanted)
    if source.gguf_file:
        more = {**_unpacked(), **more}
        del more["use_safetensors"]
    with _explained(source, wanted):
        model: Any = (kind or AutoModelForCausalLM).from_pretrained(
            source.path, dtype=dtype, **source.options, **more
        )
    if source.gguf_file:
        vars(model.config).pop("quantization_config", None)  # the weights are unpacked by now
    return (model if "device_map" in more else model.to(device)), tokenizer


def load_config(source: Source, *, wanted: str = _WANTED) -> Any:
    """Load a model's configuration alone, without its weights. Raises as `load` does."""
    with _explained(source, wanted):
        return AutoConfig.from_pretrained(source.path, trust_remote_code=False, **source.options)


def load_tokenizer(
    source: Source, *, code: bool = False, wanted: str = _WANTED
) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer alone. Raises as `load` does.

    Args:
        code: whether the tokenizer may run code of its own.
        wanted: what the user has to name, for the hint if nothing is found.
    """
    if source.gguf_file:
        _needs("gguf", "accelerate", extra="gguf")
    with _explained(source, wanted):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source.path, trust_remote_code=code, **source.options
        )
    return tokenizer


@contextmanager
def _explained(source: Source, wanted: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise ModelError(
            f"model {source.path!r} cannot be loaded: {_why(error, source)}",
            hint=_hint(error, wanted),
        ) from error


def _why(error: Exception, source: Source) -> str:
    place = Path(source.path)
    if isinstance(error, OSError) and not place.exists():
        local = place.is_absolute() or source.path.startswith((".", "~"))
        return "there is no such folder" + ("" if local else ", and the hub gave no such model")
    if source.gguf_file and not (place / source.gguf_file).is_file():
        return f"there is no file {source.gguf_file} in it"
    return type(error).__name__


def _unpacked() -> dict[str, Any]:
    """Return arguments that make transformers unpack the weights of a GGUF file.

    Newer versions keep weights packed if they have a kernel for them, but gradients need unpacked
    weights.
    """
    import transformers

    config = getattr(transformers, "GgufConfig", None)
    return {"quantization_config": config(dequantize=True)} if config else {}


def _needs(*packages: str, extra: str) -> None:
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise ModelError(
            f"the package {' and '.join(missing)} is missing",
            hint=f"pip install 'ttsa-guard[{extra}]'",
        )


def _bitsandbytes(settings: dict[str, Any]) -> Any:
    _needs("bitsandbytes", extra="bitsandbytes")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(**settings)  # type: ignore[no-untyped-call]


def _hint(error: BaseException, wanted: str) -> str:
    seen: BaseException | None = error
    while seen:
        if type(seen).__name__ == "GatedRepoError" or "gated repo" in str(seen).lower():
            return (
                "accept the model's terms on the Hugging Face hub, and put a token of yours into"
                " the variable HF_TOKEN"
            )
        seen = seen.__cause__ or seen.__context__
    return weights.hint(
        error,
        f"give {wanted}",
        trusting="read it, and if you trust it, set load: {trust_remote_code: true}",
    )
