"""What happened to one answer, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

SCHEMA = 1
Action = Literal["pass", "swap", "fallback"]


@dataclass(frozen=True)
class CandidateRecord:
    """One candidate of the search: numbers only, unless texts are wanted in the record."""

    steerer: str
    origin: str
    """Where it comes from, such as ``"opening 'To begin with,'"`` or ``"iterate 0"``."""
    score: float
    """Guide score in [0, 1]."""
    passed: bool
    """The guide passes it and the quality checks hold."""
    helpful: bool
    log_likelihood: float | None
    """Mean token log-likelihood under the unsteered prompt, in nats; None if it was not measured."""
    flaws: tuple[str, ...] = ()
    text: str | None = None


@dataclass(frozen=True)
class AuditRecord:
    """Everything about one reviewed answer. Moderated text is in it only if the configuration asks for texts."""

    id: str
    created: float
    """Seconds since the epoch."""
    action: Action
    reason: str
    gate_score: float
    """Score of the answer under review."""
    final_score: float | None
    """The gate's score of the text that left, if it was checked."""
    gate_categories: dict[str, float] = field(default_factory=dict)
    reasoning_score: float | None = None
    """Score of the reasoning before that answer, if the gate judged it."""
    helpful: bool = False
    steerer: str | None = None
    candidates: tuple[CandidateRecord, ...] = ()
    chosen: int | None = None
    """Index of the candidate that left, if one did."""
    generations: int = 0
    decode_passes: int = 0
    decode_steps: int = 0
    """New tokens of the longest generation of each pass, together: what had to be decoded one after another."""
    tokens: int = 0
    """New tokens of all generations."""
    moderation_calls: int = 0
    """All calls: the gate's and the guide's."""
    seconds: float = 0.0
    seconds_gate: float = 0.0
    """Of the first check, that of the answer under review."""
    seconds_search: float = 0.0
    seconds_decoding: float = 0.0
    """Of the decode passes of the search, with the wait for the model."""
    seconds_scoring: float = 0.0
    """Of its likelihoods and gradients by themselves, with the wait for the model."""
    seconds_final: float = 0.0
    """Of the checks of what was found."""
    seed: int = 0
    texts: dict[str, str] | None = None
    schema: int = SCHEMA

    @property
    def phases(self) -> dict[str, float]:
        """Seconds by phase; a phase that did not take place is left out."""
        parts = {"gate": self.seconds_gate, "search": self.seconds_search, "final": self.seconds_final}
        return {"review": self.seconds, **{name: seconds for name, seconds in parts.items() if seconds}}

    def as_dict(self) -> dict[str, Any]:
        candidates = tuple(dict(vars(c)) for c in self.candidates)
        return {**vars(self), "gate_categories": dict(self.gate_categories), "candidates": candidates}

    def numbers(self) -> dict[str, Any]:
        """The record without texts, also if it has them: for those who may not read the flagged one."""
        data = self.as_dict()
        del data["texts"]
        data["candidates"] = [{key: value for key, value in c.items() if key != "text"} for c in data["candidates"]]
        return data


@dataclass(frozen=True)
class Outcome:
    """The text that may be shown, and the record of how it came about."""

    text: str
    action: Action
    record: AuditRecord
    withheld: tuple[str, ...] = field(default=(), repr=False)
    """Moderated texts that may not be shown, for those who have to take them out of their own records."""
