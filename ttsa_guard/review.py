"""What is known of one review while it goes on, and the record that it becomes."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from ttsa_guard.budget import Spend
from ttsa_guard.messages import Message
from ttsa_guard.record import Action, AuditRecord
from ttsa_guard.selection import Judged
from ttsa_guard.telemetry import span
from ttsa_guard.verdict import Verdict


@dataclass(eq=False)
class Review:
    """The state of one review.

    Args:
        answer: the answer under review.
        spend: what the search has used.
        shown: what of the answer the user has read already.
        first: the gate's verdict on the answer.
        judged: the candidates so far.
        gate_calls: the gate's calls, those for `shown` included.
        prefer: the user's preferences, if the request has any.
    """

    answer: str
    spend: Spend
    messages: tuple[Message, ...] = ()
    shown: str = ""
    first: Verdict | None = None
    judged: list[Judged] = field(default_factory=list)
    gate_calls: int = 0
    prefer: Mapping[str, float] | None = None

    @property
    def prompt(self) -> str:
        """What the user said last."""
        return last_user(self.messages)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what happens inside, as a span too."""
        with self.spend.timed(name), span(f"ttsa_guard.{name}"):
            yield

    def record(
        self, text: str, action: Action, reason: str, chosen: Judged | None, final: Verdict | None, *, seed: int, texts: bool
    ) -> AuditRecord:
        """The finished review: `text` leaves, and is what was `chosen` if it is a swap; moderated texts only if `texts`."""
        spend, first, took = self.spend, self.first, self.spend.took
        return AuditRecord(
            id=uuid.uuid4().hex,
            created=time.time(),
            action=action,
            reason=reason,
            gate_score=first.score if first else 1.0,
            gate_categories=dict(first.categories) if first else {},
            final_score=final.score if final else None,
            helpful=chosen.helpful if chosen else action == "pass",
            steerer=chosen.steerer if chosen else None,
            candidates=tuple(j.record(texts=texts) for j in self.judged),
            chosen=next((i for i, j in enumerate(self.judged) if j is chosen), None),
            generations=spend.generations,
            decode_passes=spend.decode_passes,
            decode_steps=spend.decode_steps,
            tokens=spend.tokens,
            moderation_calls=spend.moderation_calls + self.gate_calls,
            seconds=spend.seconds,
            seconds_gate=took.get("gate", 0.0),
            seconds_search=took.get("search", 0.0),
            seconds_decoding=took.get("decoding", 0.0),
            seconds_scoring=took.get("scoring", 0.0),
            seconds_final=took.get("final", 0.0),
            seed=seed,
            texts={"answer": self.answer, "final": text} if texts else None,
        )


def last_user(messages: Sequence[Message]) -> str:
    return next((m.content for m in reversed(messages) if m.role == "user"), "")
