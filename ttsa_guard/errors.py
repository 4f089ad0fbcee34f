"""Everything that ttsa_guard raises.

::

    TTSAError
    ├── UsageError              the caller made a mistake
    │   ├── ConfigError         a setting is unknown, out of range or cannot be honoured
    │   ├── PluginError         a plugin that the configuration names is missing or cannot load
    │   └── PromptError         the conversation cannot be given to this model
    │       └── ImageError      an image in it is too large, broken or of no known kind
    ├── ServiceError            something outside of the program fails
    │   ├── ModelError          a model cannot be found, loaded or run
    │   └── ModeratorError      a moderator is down or breaks its contract
    │       ├── AccessError     a moderation service refuses the key, the plan or the address
    │       └── InputError      a moderation service refuses to judge this text
    └── BudgetError             the deadline, the generations or the moderation calls are used up

Every class carries a `hint` (what to do about it) and says whether the same call may succeed later
(`retryable`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TTSAError(Exception):
    """Base class of all errors of this package.

    `str()` gives the message and, on a second line, the hint.
    """

    retryable = False
    """Whether the same call may succeed later."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class UsageError(TTSAError):
    """The caller made a mistake. Trying again changes nothing."""


class ConfigError(UsageError):
    """A setting is unknown, out of range, or cannot be honoured."""


class PluginError(UsageError):
    """A plugin that the configuration names is not installed or cannot load."""


class PromptError(UsageError):
    """The conversation cannot be given to this model.

    It is empty or too long, or the model has no chat template.
    """


class ImageError(PromptError):
    """An image in the conversation is too large, broken, or of no known kind.

    The message holds nothing of the image.
    """


class ServiceError(TTSAError):
    """Something outside of the program fails: a model, a file or a service."""


class ModelError(ServiceError):
    """A model cannot be found, loaded or run, or it was given embeddings that it cannot take."""


class ModeratorError(ServiceError):
    """A moderator is down, or it returned something that is not a verdict."""

    retryable = True
    status: int | None = None
    """The HTTP status of a service that refused, or failed and said so."""


class AccessError(ModeratorError):
    """A moderation service refuses the key, the plan or the address.

    Trying again changes nothing.
    """

    retryable = False


class InputError(ModeratorError):
    """A moderation service refuses to judge this text.

    The text is too long, malformed or in another language.

    Args:
        said: the service's own words. They may quote the text, so they are for programs and not for
            logs.
    """

    retryable = False

    def __init__(self, message: str, *, hint: str = "", said: bytes = b"") -> None:
        super().__init__(message, hint=hint)
        self.said = said


class BudgetError(TTSAError):
    """A limit of the budget was reached.

    Args:
        resource: the setting of the budget: "seconds", "generations", "decode_passes", "tokens" or
            "moderation_calls".
        limit: the configured limit, in units of the resource.
        wanted: what the usage would have been.
    """

    def __init__(self, resource: str, *, limit: float, wanted: float) -> None:
        super().__init__(
            f"budget used up: {resource} would reach {wanted:g} of {limit:g}",
            hint=f"raise budget.{resource}",
        )
        self.resource = resource
        self.limit = limit
        self.wanted = wanted


def nearest(word: str, valid: Iterable[str]) -> str:
    """Return a hint that names the valid word closest to `word`, or all valid words."""
    names = sorted(valid)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(names) or '(none)'}"
