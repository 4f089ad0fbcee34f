"""Write a file of verdicts on a file of texts, batch by batch, so that a stopped run goes on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttsa_guard.errors import ConfigError
from ttsa_guard.moderators.base import Moderator, close, moderate_safely
from ttsa_guard.moderators.labelled import LabelledText
from ttsa_guard.verdict import Decision, Verdict


@dataclass(frozen=True)
class ScoreFile:
    """One JSON object a line, in the order of the texts; it holds digests and no texts."""

    path: Path

    def resume(self, texts: Sequence[LabelledText]) -> int:
        """How many texts have a verdict. A last line that was cut off is removed.

        Raises:
            ConfigError: the verdicts are those on other texts.
        """
        if not self.path.exists():
            return 0
        written = self.path.read_bytes()
        whole = written[: written.rfind(b"\n") + 1]
        lines = whole.decode("utf-8", "replace").splitlines()
        for line, text in zip(lines, texts, strict=False):
            if not _belongs(line, text):
                raise ConfigError(
                    f"{self.path} has the results of other texts",
                    hint="name another file with --out, or remove that one",
                )
        if len(lines) > len(texts):
            raise ConfigError(
                f"{self.path} has more results than there are texts",
                hint="name another file with --out",
            )
        if whole != written:
            self.path.write_bytes(whole)
        return len(lines)

    async def score(
        self,
        judge: Moderator,
        texts: Sequence[LabelledText],
        *,
        batch: int,
        advance: Callable[[int], None],
    ) -> None:
        """Append the verdicts on these texts; the moderator is closed afterwards.

        Args:
            batch: texts judged together.
            advance: is told after each batch how many texts it had.
        """
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
                advance(len(chunk))
            await close(judge)

    def decisions(self) -> Counter[Decision]:
        """How often each decision is in the file."""
        return Counter(
            json.loads(line)["decision"]
            for line in self.path.read_text(encoding="utf-8").splitlines()
        )


def _belongs(line: str, text: LabelledText) -> bool:
    try:
        return bool(json.loads(line)["digest"] == text.digest)
    except (ValueError, TypeError, KeyError):
        return False


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
