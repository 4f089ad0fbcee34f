"""Check that a moderator keeps its contract.

Authors of plugins call it through ``ttsa_guard.testing.check_moderator(moderator)``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from ttsa_guard.moderators.base import Moderator
from ttsa_guard.verdict import Verdict

SECRET = "a sentence that must not be logged, 7f3a"
TEXTS = (
    "What a lovely day.",
    "The kettle is clean.",
    "Très bien, merci beaucoup.",
    "这很好。",
    "Ça va? 🙂🎉",
    "half of a pair: \ud800",
    "null \x00 and tab \t",
    "",
    "   ",
)
LONG = "The kettle is clean, and so is the kitchen. " * 2500  # 110 kB


async def check(moderator: Moderator, *, seconds: float = 60.0) -> None:
    """Try everything that a guard may do to a moderator.

    Args:
        seconds: the time limit of each check.

    Raises:
        AssertionError: the moderator breaks its contract. The message lists all violations, and
            what the contract says.
    """
    problems: list[str] = []
    for probe in (_name, _batches, _long, _alone, _at_once, _cancelled, _silent):
        try:
            await asyncio.wait_for(probe(moderator), seconds)
        except AssertionError as error:
            problems.append(str(error))
        except (asyncio.TimeoutError, TimeoutError):
            problems.append(f"{probe.__name__.strip('_')}: took more than {seconds:g} s")
        except Exception as error:
            problems.append(
                f"{probe.__name__.strip('_')}: raised {type(error).__name__}; what it cannot judge"
                " is a failed verdict"
            )
    if problems:
        listed = "\n".join(f"  * {problem}" for problem in problems)
        raise AssertionError(
            f"moderator {getattr(moderator, 'name', moderator)!r} breaks the contract:\n{listed}"
        )


async def _name(moderator: Moderator) -> None:
    name = getattr(moderator, "name", None)
    assert isinstance(name, str), "name: it has none; records and panels need it"
    assert name, "name: it is empty"
    assert moderator.name == name, "name: it changes"


async def _batches(moderator: Moderator) -> None:
    assert await moderator.moderate([], prompts=[]) == [], (
        "no texts: they get no verdicts, an empty list"
    )
    await _asked(moderator, TEXTS)


async def _long(moderator: Moderator) -> None:
    await _asked(moderator, [LONG])


async def _alone(moderator: Moderator) -> None:
    together = await _asked(moderator, TEXTS)
    for text, expected in zip(TEXTS, together, strict=True):
        [verdict] = await _asked(moderator, [text])
        same = verdict.decision == expected.decision and abs(verdict.score - expected.score) < 1e-3
        assert same, (
            f"batches: text {TEXTS.index(text)} is judged differently alone; is the order kept?"
        )


async def _at_once(moderator: Moderator) -> None:
    expected = [v.decision for v in await _asked(moderator, TEXTS)]
    turned = [[*range(i, len(TEXTS)), *range(i)] for i in range(len(TEXTS))]
    found = await asyncio.gather(
        *(_asked(moderator, [TEXTS[i] for i in order]) for order in turned)
    )
    for order, verdicts in zip(turned, found, strict=True):
        same = [v.decision for v in verdicts] == [expected[i] for i in order]
        assert same, "at once: several conversations get each other's verdicts"


async def _cancelled(moderator: Moderator) -> None:
    work = asyncio.ensure_future(moderator.moderate(list(TEXTS), prompts=[""] * len(TEXTS)))
    await asyncio.sleep(0)
    work.cancel()
    await asyncio.wait({work}, timeout=5)
    assert work.done(), "cancelled: it goes on; let asyncio.CancelledError through"
    await _asked(moderator, TEXTS[:1])


async def _silent(moderator: Moderator) -> None:
    handler = _Kept(logging.DEBUG)
    root, level = logging.getLogger(), logging.getLogger().level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        verdicts = await _asked(moderator, [SECRET])
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    logged = " ".join(record.getMessage() for record in handler.records)
    assert SECRET not in logged, "logs: it logs the text; log ids, scores and lengths"
    assert SECRET not in repr(verdicts), "verdicts: the text is in one, in its reason or a category"


class _Kept(logging.Handler):
    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


async def _asked(moderator: Moderator, texts: Sequence[str]) -> list[Verdict]:
    found: Any = await moderator.moderate(list(texts), prompts=["How are you?"] * len(texts))
    assert isinstance(found, list), f"verdicts: moderate gives a {type(found).__name__}, not a list"
    assert len(found) == len(texts), f"verdicts: {len(found)} for {len(texts)} texts"
    assert all(isinstance(v, Verdict) for v in found), (
        "verdicts: something else is among them; use Verdict.scored"
    )
    assert all(v.moderator == moderator.name for v in found), (
        "verdicts: they do not carry the moderator's name"
    )
    passes = [v.score for v in found if v.decision == "pass"]
    flags = [v.score for v in found if v.decision == "flag"]
    assert not passes or not flags or max(passes) <= min(flags), (
        "scores: a text that passes scores higher than one that does not"
    )
    return found
