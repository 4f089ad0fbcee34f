"""Turn a flagged answer into a good one: test-time safety alignment as a guard.

The public names below load lazily, so ``import ttsa_guard`` imports neither torch nor transformers
nor nemoguardrails.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ttsa_guard.config import GuardConfig
    from ttsa_guard.errors import TTSAError
    from ttsa_guard.guard import Guard
    from ttsa_guard.messages import Message
    from ttsa_guard.plugins import hookimpl
    from ttsa_guard.record import AuditRecord, Outcome
    from ttsa_guard.verdict import Verdict

__version__ = "0.1.0"
__all__ = [
    "AuditRecord",
    "Guard",
    "GuardConfig",
    "Message",
    "Outcome",
    "TTSAError",
    "Verdict",
    "hookimpl",
]

_HOME = {
    "AuditRecord": "record",
    "Guard": "guard",
    "GuardConfig": "config",
    "Message": "messages",
    "Outcome": "record",
    "TTSAError": "errors",
    "Verdict": "verdict",
    "hookimpl": "plugins",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
