"""Write a file of verdicts on a file of texts, batch by batch, so that a stopped run goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttsa_guard.errors import ConfigError
from ttsa_guard.files import read_state_lines
from ttsa_guard.moderators.base import Moderator, close, moderate_safely
from ttsa_guard.moderators.labelled import LabelledText
from ttsa_guard.verdict import Verdict


@dataclass(frozen=True)
class ScoreFile:
    """One JSON object a line, in the order of the texts; it holds digests and no texts.

    Args:
        moderator: whose verdicts they are.
    """

    path: Path
    moderator: str

    def resume(self, texts: Sequence[LabelledText]) -> list[Verdict]:
        """Return the verdicts that there are on the first texts. A cut-off line is removed.

        Raises:
            ConfigError: a line is damaged, or the verdicts are those on other texts.
        """
        found = read_state_lines(self.path, self._parsed)
        for (digest, _), text in zip(found, texts, strict=False):
            if digest != text.digest:
                raise ConfigError(
                    f"{self.path} has the results of other texts",
                    hint="remove it to begin again, or name another file",
                )
        if len(found) > len(texts):
            raise ConfigError(
                f"{self.path} has more results than there are texts",
                hint="remove it to begin again, or name another file",
            )
        return [verdict for _, verdict in found]

    async def score(
        self,
        judge: Moderator,
        texts: Sequence[LabelledText],
        *,
        batch: int,
        advance: Callable[[int], None],
    ) -> list[Verdict]:
        """Append the verdicts on these texts, and return them; the moderator is closed afterwards.

        Args:
            batch: texts judged together.
            advance: is told after each batch how many texts it had.
        """
        found: list[Verdict] = []
        with self.path.open("a", encoding="utf-8") as file:
            for start in range(0, len(texts), batch):
                chunk = texts[start : start + batch]
                verdicts = await moderate_safely(
                    judge, [t.text for t in chunk], prompts=[t.prompt for t in chunk]
                )
                file.writelines(
                    json.dumps(_result(t, v)) + "\n" for t, v in zip(chunk, verdicts, strict=True)
                )
                file.flush()
                found += verdicts
                advance(len(chunk))
        await close(judge)
        return found

    def _parsed(self, line: bytes) -> tuple[str, Verdict]:
        data = json.loads(line)
        verdict = Verdict(
            self.moderator, data["decision"], data["score"], data["categories"], data["reason"]
        )
        return data["digest"], verdict


def _result(text: LabelledText, verdict: Verdict) -> dict[str, Any]:
    return {
        "line": text.line,
        "digest": text.digest,
        "decision": verdict.decision,
        "score": verdict.score,
        "categories": dict(verdict.categories),
        "reason": verdict.reason,
        **({"id": text.data["id"]} if "id" in text.data else {}),
    }
