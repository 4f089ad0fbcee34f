"""The contract of a moderator, and the only way in which moderators are called."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar, runtime_checkable

from ttsa_guard.aside import aside
from ttsa_guard.budget import within
from ttsa_guard.images import Image
from ttsa_guard.quotes import WINDOW, normal, quotes
from ttsa_guard.verdict import Verdict

log = logging.getLogger(__name__)
T = TypeVar("T")
MARK = "withheld"
_LONGEST = 200
"""Most characters of a reason or of a name."""


@runtime_checkable
class Moderator(Protocol):
    """Judges a batch of texts. The verdicts are in the order of the texts.

    A moderator may also be `Coarse`, `Blocking` or `Closes`. Moderators that do not come with this
    package run on an event loop in a thread of their own, always the same one. So they keep to
    their time limit whatever they do. With ``blocking = False`` a moderator says that it may run on
    the guard's loop.
    """

    @property
    def name(self) -> str:
        """The name in verdicts and records. It never changes."""
        ...

    async def moderate(self, texts: Sequence[str], *, prompts: Sequence[str]) -> list[Verdict]:
        """Return a verdict for each text, in order; an empty list if there are no texts.

        Args:
            texts: the answers to judge, of any length and kind; they may be empty.
            prompts: the user texts that the answers belong to, one for each; an empty one is not
                known.
        """
        ...


@runtime_checkable
class ImageModerator(Protocol):
    """Judges a batch of images. The verdicts are in the order of the images.

    It may be `Blocking` or `Closes`, too. Where it runs is decided as for a `Moderator`.
    """

    @property
    def name(self) -> str:
        """The name in verdicts and records. It never changes."""
        ...

    async def moderate_images(self, images: Sequence[Image]) -> list[Verdict]:
        """Return a verdict for each image, in order; an empty list if there are none.

        Args:
            images: with bytes that begin and end as those of a file of their kind do. What is
                between may be broken, and an image that cannot be judged gets a failed verdict.
        """
        ...


@runtime_checkable
class Coarse(Protocol):
    """The moderator tells whether its scores have too few levels to guide a search."""

    coarse: bool


@runtime_checkable
class Blocking(Protocol):
    """The moderator tells whether it may hold up the event loop that it runs on."""

    blocking: bool


@runtime_checkable
class Closes(Protocol):
    """The moderator holds something that has to be let go of, for example connections."""

    async def close(self) -> None:
        """Let go of what the moderator holds."""
        ...


def is_coarse(moderator: Moderator) -> bool:
    """Return whether the scores of `moderator` are too coarse to guide a search."""
    return isinstance(moderator, Coarse) and moderator.coarse


async def close(moderator: Moderator | ImageModerator) -> None:
    """Let a moderator close what it holds, on the loop that it runs on."""
    if isinstance(moderator, Closes):
        await on_its_loop(moderator, moderator.close())


async def moderate_safely(
    moderator: Moderator,
    texts: Sequence[str],
    *,
    prompts: Sequence[str],
    seconds: float | None = None,
) -> list[Verdict]:
    """Call a moderator, and turn every fault into failed verdicts, one for each text.

    Faults are exceptions, a cancellation from inside, more than `seconds`, the wrong number of
    verdicts, and anything that is not a `Verdict`. The reason names only the kind of fault, because
    a foreign error message may quote the text. Reasons and category names that quote a text or its
    prompt are replaced.
    """
    verdicts = await _verdicts(
        moderator, lambda: moderator.moderate(texts, prompts=prompts), len(texts), seconds
    )
    return [
        _without_quotes(verdict, f"{text}\n{prompt}")
        for verdict, text, prompt in zip(verdicts, texts, prompts, strict=True)
    ]


async def moderate_images_safely(
    moderator: ImageModerator, images: Sequence[Image], *, seconds: float | None = None
) -> list[Verdict]:
    """Call an image moderator, and turn every fault into failed verdicts, as `moderate_safely`.

    Images that cannot be read are not given to it, and their verdicts are failed ones.
    """
    readable = [image for image in images if image.readable]
    judged: list[Verdict] = []
    if readable:
        judged = await _verdicts(
            moderator, lambda: moderator.moderate_images(readable), len(readable), seconds
        )
    found = iter(judged)
    unread = Verdict.failure(moderator.name, "an image or file that cannot be read")
    return [_without_quotes(next(found), "") if i.readable else unread for i in images]


async def _verdicts(
    moderator: Moderator | ImageModerator,
    work: Callable[[], Coroutine[Any, Any, list[Verdict]]],
    n: int,
    seconds: float | None,
) -> list[Verdict]:
    """Return the `n` verdicts of the work of a moderator: failed ones after any fault."""
    try:
        verdicts = await within(seconds, on_its_loop(moderator, work()))
    except Exception as error:
        log.warning("moderator %s failed: %s", moderator.name, type(error).__name__)
        return [Verdict.failure(moderator.name, type(error).__name__)] * n
    if (
        not isinstance(verdicts, list)
        or len(verdicts) != n
        or not all(isinstance(v, Verdict) for v in verdicts)
    ):
        log.warning(
            "moderator %s returned something that is not a list of %d verdicts", moderator.name, n
        )
        return [Verdict.failure(moderator.name, "not a list of verdicts")] * n
    return verdicts


def on_its_loop(
    moderator: Moderator | ImageModerator, work: Coroutine[Any, Any, T]
) -> Coroutine[Any, Any, T]:
    """Return the work of a moderator, made to run where it cannot hold up anything else."""
    ours = type(moderator).__module__.partition(".")[0] == __name__.partition(".")[0]
    return (
        aside(moderator, work)
        if (moderator.blocking if isinstance(moderator, Blocking) else not ours)
        else work
    )


def _without_quotes(verdict: Verdict, texts: str) -> Verdict:
    """Return the verdict without reasons and names that quote what was moderated.

    Verdicts go into records and to clients.
    """
    names = (verdict.moderator, *verdict.categories)
    if not verdict.reason and all(len(name) < WINDOW for name in names):
        return verdict
    known = normal(texts)
    odd = {
        name
        for name in names
        if len(name) >= WINDOW and (len(name) > _LONGEST or quotes(name, known))
    }
    scores = [score for name, score in verdict.categories.items() if name in odd]
    withheld = {MARK: max(scores)} if scores else {}
    return replace(
        verdict,
        moderator=MARK if verdict.moderator in odd else verdict.moderator,
        reason=MARK if quotes(verdict.reason, known) else verdict.reason[:_LONGEST],
        categories={
            **{name: score for name, score in verdict.categories.items() if name not in odd},
            **withheld,
        },
    )
