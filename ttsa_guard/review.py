"""Hold the state of one review while it goes on, and make the record that it becomes."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from ttsa_guard.budget import Usage
from ttsa_guard.messages import Message, images_of, last_user
from ttsa_guard.quotes import WINDOW, normal, quotes
from ttsa_guard.record import Action, AuditRecord, CandidateRecord, ImageRecord
from ttsa_guard.selection import Judged
from ttsa_guard.telemetry import span
from ttsa_guard.verdict import Verdict


@dataclass(eq=False)
class Review:
    """The state of one review.

    Args:
        answer: the answer under review.
        usage: what has been used of the budget.
        reasoning: what the model thought before it answered, if the gate is to judge that, too.
        messages: the conversation up to, and without, the answer.
        shown: the part of the answer that the user has read already.
        gate_verdict: the gate's verdict on the answer; None before it is known.
        image_verdict: the image gate's worst verdict; None if it did not judge any image.
        reasoning_verdict: the gate's verdict on the reasoning; None if that is not judged.
        judged: the candidates so far.
        gate_calls: number of the gate's calls, including those for `shown`, and of the calls of
            image moderators.
        prefer: the user's preferences, if the request has any.
    """

    answer: str
    usage: Usage
    reasoning: str = ""
    messages: tuple[Message, ...] = ()
    shown: str = ""
    gate_verdict: Verdict | None = None
    reasoning_verdict: Verdict | None = None
    image_verdict: Verdict | None = None
    judged: list[Judged] = field(default_factory=list)
    gate_calls: int = 0
    prefer: Mapping[str, float] | None = None

    @property
    def prompt(self) -> str:
        """The text of the last user message."""
        return last_user(self.messages)

    @property
    def flag(self) -> Verdict | None:
        """Why the answer may not leave: the verdict on it, else the one on its reasoning; None:
        both pass.
        """
        return next(
            (
                verdict
                for verdict in (self.gate_verdict, self.reasoning_verdict)
                if verdict and verdict.flagged
            ),
            None,
        )

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure the time of the block as a phase, and open a span for it."""
        with self.usage.timed(name), span(f"ttsa_guard.{name}"):
            yield

    def record(
        self,
        text: str,
        action: Action,
        reason: str,
        chosen: Judged | None,
        final: Verdict | None,
        *,
        seed: int,
        texts: bool,
    ) -> AuditRecord:
        """Return the record of the finished review.

        Args:
            text: the text that leaves.
            chosen: the candidate that leaves; None if none does.
            final: the gate's verdict on that text, if it was checked.
            texts: whether the record gets the moderated texts.
        """
        usage, gate_verdict, seconds = self.usage, self.gate_verdict, self.usage.seconds_by_phase
        return AuditRecord(
            id=uuid.uuid4().hex,
            created=time.time(),
            action=action,
            reason=reason,
            gate_score=gate_verdict.score if gate_verdict else 1.0,
            gate_categories=dict(gate_verdict.categories) if gate_verdict else {},
            reasoning_score=self.reasoning_verdict.score if self.reasoning_verdict else None,
            final_score=final.score if final else None,
            images=tuple(ImageRecord(i.sha256, i.size) for i in images_of(self.messages)),
            image_score=self.image_verdict.score if self.image_verdict else None,
            helpful=chosen.helpful if chosen else action == "pass",
            steerer=chosen.steerer if chosen else None,
            candidates=tuple(self._candidate(j, texts) for j in self.judged),
            chosen=next((i for i, j in enumerate(self.judged) if j is chosen), None),
            generations=usage.generations,
            decode_passes=usage.decode_passes,
            decode_steps=usage.decode_steps,
            tokens=usage.tokens,
            moderation_calls=usage.moderation_calls + self.gate_calls,
            seconds=usage.seconds,
            seconds_gate=seconds.get("gate", 0.0),
            seconds_search=seconds.get("search", 0.0),
            seconds_decoding=seconds.get("decoding", 0.0),
            seconds_scoring=seconds.get("scoring", 0.0),
            seconds_final=seconds.get("final", 0.0),
            seed=seed,
            texts=self._texts(text) if texts else None,
        )

    def _texts(self, final: str) -> dict[str, str]:
        judged = {"reasoning": self.reasoning} if self.reasoning else {}
        return {"answer": self.answer, **judged, "final": final}

    def _candidate(self, judged: Judged, texts: bool) -> CandidateRecord:
        """Return the record of a candidate.

        The steerer's note on its origin is withheld if it quotes the answer or the candidate.
        """
        found, candidate = judged.record(texts=texts), judged.candidate
        if len(found.origin) < WINDOW or not quotes(
            found.origin, normal(f"{self.answer}\n{self.reasoning}\n{candidate.text}")
        ):
            return found
        return replace(found, origin="withheld")
