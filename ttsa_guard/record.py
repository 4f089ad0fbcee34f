"""What happened to one answer, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

SCHEMA = 1
Action = Literal["pass", "swap", "fallback"]


@dataclass(frozen=True)
class CandidateRecord:
    """One candidate of the search. It has a text only if the configuration asks for texts."""

    steerer: str
    origin: str
    """Where the candidate comes from, for example ``"opening 1"``."""
    score: float
    """The guide's score, in [0, 1]."""
    passed: bool
    """Whether the guide passes the candidate and it has no flaws."""
    helpful: bool
    log_likelihood: float | None
    """Mean token log-likelihood under the unsteered prompt, in nats; None if not measured."""
    flaws: tuple[str, ...] = ()
    text: str | None = None


@dataclass(frozen=True)
class ImageRecord:
    """One image of the conversation. Nothing of what it shows is kept."""

    sha256: str
    """Of its bytes, in hexadecimal; of the reference to it, if it could not be read."""
    size: int
    """Number of bytes; 0 if it could not be read."""


@dataclass(frozen=True)
class AuditRecord:
    """All about one reviewed answer.

    It has moderated texts only if the configuration asks for texts.
    """

    id: str
    created: float
    """Seconds since the epoch."""
    action: Action
    reason: str
    gate_score: float
    """The gate's score of the answer under review, in [0, 1]."""
    final_score: float | None
    """The gate's score of the text that left, in [0, 1]; None if that text was not checked."""
    gate_categories: dict[str, float] = field(default_factory=dict)
    reasoning_score: float | None = None
    """Score of the reasoning before that answer, if the gate judged it."""
    images: tuple[ImageRecord, ...] = ()
    image_score: float | None = None
    """The image gate's worst score of them, in [0, 1]; None if it did not judge them."""
    helpful: bool = False
    steerer: str | None = None
    candidates: tuple[CandidateRecord, ...] = ()
    chosen: int | None = None
    """Index of the candidate that left; None if none did."""
    generations: int = 0
    decode_passes: int = 0
    decode_steps: int = 0
    """Sum over all passes of the new tokens of the longest generation.

    These are the tokens that had to be decoded one after another.
    """
    tokens: int = 0
    """New tokens of all generations."""
    moderation_calls: int = 0
    """All calls of the gate, of the guide and of image moderators."""
    seconds: float = 0.0
    """Seconds of the whole review."""
    seconds_gate: float = 0.0
    """Seconds of the first check, which is that of the answer under review."""
    seconds_search: float = 0.0
    """Seconds of the search."""
    seconds_decoding: float = 0.0
    """Seconds of the search's decode passes, including the wait for the model."""
    seconds_scoring: float = 0.0
    """Seconds of the search's separate passes for likelihoods and gradients.

    The wait for the model is included.
    """
    seconds_final: float = 0.0
    """Seconds of the gate's checks of what the search found."""
    seed: int = 0
    texts: dict[str, str] | None = None
    schema: int = SCHEMA

    @property
    def phases(self) -> dict[str, float]:
        """Seconds by phase. A phase that did not take place is left out."""
        parts = {
            "gate": self.seconds_gate,
            "search": self.seconds_search,
            "final": self.seconds_final,
        }
        return {
            "review": self.seconds,
            **{name: seconds for name, seconds in parts.items() if seconds},
        }

    def as_dict(self) -> dict[str, Any]:
        """Return the record as plain data, ready for JSON."""
        candidates = tuple(dict(vars(c)) for c in self.candidates)
        return {
            **vars(self),
            "gate_categories": dict(self.gate_categories),
            "images": tuple(dict(vars(image)) for image in self.images),
            "candidates": candidates,
        }

    def numbers(self) -> dict[str, Any]:
        """Return the record without any text, as plain data.

        It is for readers who may not see the flagged text.
        """
        data = self.as_dict()
        del data["texts"]
        data["candidates"] = [
            {key: value for key, value in c.items() if key != "text"} for c in data["candidates"]
        ]
        return data


@dataclass(frozen=True)
class Outcome:
    """The text that may be shown, and the record of how it came about."""

    text: str
    action: Action
    record: AuditRecord
    withheld: tuple[str, ...] = field(default=(), repr=False)
    """Moderated texts that may not be shown. A host uses them to clean its own records."""
