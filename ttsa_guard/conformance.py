"""Check that a moderator, of texts or of images, keeps its contract.

Authors of plugins call it through ``ttsa_guard.testing.check_moderator(moderator)`` and
``ttsa_guard.testing.check_image_moderator(moderator)``.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import struct
import zlib
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from ttsa_guard.images import Image
from ttsa_guard.moderators.base import ImageModerator, Moderator
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


@dataclass(frozen=True)
class _Trial:
    """A moderator of either kind, and what it is tried with.

    Args:
        word: what one of the things is.
        things: small ones of every kind.
        large: a large one.
        secret: one that must not be quoted.
        quotes: what would be a quote of it.
    """

    moderator: Moderator | ImageModerator
    word: str
    work: Callable[[Sequence[Any]], Coroutine[Any, Any, Any]]
    things: Sequence[Any]
    large: Any
    secret: Any
    quotes: Sequence[str]

    async def ask(self, things: Sequence[Any]) -> list[Verdict]:
        found, name = await self.work(list(things)), self.moderator.name
        assert isinstance(found, list), f"verdicts: it gives a {type(found).__name__}, not a list"
        assert len(found) == len(things), f"verdicts: {len(found)} for {len(things)} {self.word}s"
        assert all(isinstance(v, Verdict) for v in found), (
            "verdicts: something else is among them; use Verdict.scored"
        )
        assert all(v.moderator == name for v in found), (
            "verdicts: they do not carry the moderator's name"
        )
        passes = [v.score for v in found if v.decision == "pass"]
        flags = [v.score for v in found if v.decision == "flag"]
        assert not passes or not flags or max(passes) <= min(flags), (
            f"scores: one {self.word} that passes scores higher than one that does not"
        )
        return found


async def check(moderator: Moderator, *, seconds: float = 60.0) -> None:
    """Try everything that a guard may do to a moderator.

    Args:
        seconds: the time limit of each check.

    Raises:
        AssertionError: the moderator breaks its contract. The message lists all violations, and
            what the contract says.
    """

    def work(texts: Sequence[str]) -> Coroutine[Any, Any, Any]:
        return moderator.moderate(texts, prompts=["How are you?"] * len(texts))

    await _tried(_Trial(moderator, "text", work, TEXTS, LONG, SECRET, [SECRET]), seconds)


async def check_images(moderator: ImageModerator, *, seconds: float = 60.0) -> None:
    """Try everything that a guard may do to an image moderator; the rest is as for `check`."""
    secret = _image(png(9, 9, 77))
    quotes = [base64.b64encode(secret.data).decode(), repr(secret.data)[2:-1], secret.data.hex()]
    trial = _Trial(
        moderator,
        "image",
        moderator.moderate_images,
        _images(),
        _image(png(2000, 1500)),
        secret,
        quotes,
    )
    await _tried(trial, seconds)


def png(width: int = 2, height: int = 2, grey: int = 0, *, broken: bool = False) -> bytes:
    """Return a PNG of one grey; if it is broken, its header is right and its pixels are not."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + bytes([grey]) * width) * height)
    parts = (b"IHDR", header), (b"IDAT", b"?" if broken else rows), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def _image(data: bytes) -> Image:
    return Image.from_url(f"data:image/png;base64,{base64.b64encode(data).decode()}")


def _images() -> list[Image]:
    greys = [_image(png(1 + 60 * i, 64, 90 * i)) for i in range(3)]
    return [*greys, _image(png(broken=True)), _image(png(1, 1))]


# ------------------------------------------------------------------ what is tried


async def _tried(trial: _Trial, seconds: float) -> None:
    problems: list[str] = []
    for probe in (_name, _batches, _long, _alone, _at_once, _cancelled, _silent):
        try:
            await asyncio.wait_for(probe(trial), seconds)
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
        name = getattr(trial.moderator, "name", trial.moderator)
        raise AssertionError(f"moderator {name!r} breaks the contract:\n{listed}")


async def _name(trial: _Trial) -> None:
    name = getattr(trial.moderator, "name", None)
    assert isinstance(name, str), "name: it has none; records and panels need it"
    assert name, "name: it is empty"
    assert trial.moderator.name == name, "name: it changes"


async def _batches(trial: _Trial) -> None:
    assert await trial.work([]) == [], f"no {trial.word}s: they get no verdicts, an empty list"
    await trial.ask(trial.things)


async def _long(trial: _Trial) -> None:
    await trial.ask([trial.large])


async def _alone(trial: _Trial) -> None:
    together = await trial.ask(trial.things)
    for i, expected in enumerate(together):
        [verdict] = await trial.ask([trial.things[i]])
        same = verdict.decision == expected.decision and abs(verdict.score - expected.score) < 1e-3
        assert same, f"batches: {trial.word} {i} is judged differently alone; is the order kept?"


async def _at_once(trial: _Trial) -> None:
    things = trial.things
    expected = [v.decision for v in await trial.ask(things)]
    turned = [[*range(i, len(things)), *range(i)] for i in range(len(things))]
    found = await asyncio.gather(*(trial.ask([things[i] for i in order]) for order in turned))
    for order, verdicts in zip(turned, found, strict=True):
        same = [v.decision for v in verdicts] == [expected[i] for i in order]
        assert same, "at once: several conversations get each other's verdicts"


async def _cancelled(trial: _Trial) -> None:
    work = asyncio.ensure_future(trial.work(list(trial.things)))
    await asyncio.sleep(0)
    work.cancel()
    await asyncio.wait({work}, timeout=5)
    assert work.done(), "cancelled: it goes on; let asyncio.CancelledError through"
    await trial.ask(trial.things[:1])


async def _silent(trial: _Trial) -> None:
    handler = _Kept(logging.DEBUG)
    root, level = logging.getLogger(), logging.getLogger().level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        verdicts = await trial.ask([trial.secret])
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    logged, told = " ".join(record.getMessage() for record in handler.records), repr(verdicts)
    assert not any(quote in logged for quote in trial.quotes), (
        f"logs: it logs the {trial.word}; log ids, scores and lengths"
    )
    assert not any(quote in told for quote in trial.quotes), (
        f"verdicts: the {trial.word} is in one, in its reason or a category"
    )


class _Kept(logging.Handler):
    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
