"""The guard as an output rail of NeMo Guardrails.

The only part of the package that imports nemoguardrails.

Either import the shipped folder in the configuration (``import_paths: [ttsa_guard/rails]``), or put
a ``config.py`` with ``from ttsa_guard.nemo import init`` beside it, or call `install` on an app
that exists.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ttsa_guard.nemo.rails import rails_path

if TYPE_CHECKING:
    from ttsa_guard.nemo.host import init, install, installed_guard, passthrough_app
    from ttsa_guard.nemo.model import BackendModel

__all__ = ["BackendModel", "init", "install", "installed_guard", "passthrough_app", "rails_path"]

_HOME = {
    "BackendModel": "model",
    "init": "host",
    "install": "host",
    "installed_guard": "host",
    "passthrough_app": "host",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
