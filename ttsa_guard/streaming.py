"""Show a growing answer sentence by sentence, as far as the gate has passed it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

from ttsa_guard.reasoning import without_reasoning
from ttsa_guard.text import settled_sentences

_PIECE = re.compile(r"\s*\S+|\s+$")


def pieces(text: str, *, shown: str = "") -> list[str]:
    """Return the words of a text, for a stream that has shown `shown` already.

    What has been shown is left out. A text that does not begin with it comes after it, as a
    paragraph of its own.
    """
    if shown and text and not text.startswith(shown):
        return _PIECE.findall(f"\n\n{text}")
    return _PIECE.findall(text.removeprefix(shown))


class StreamGate:
    """Lets a growing answer out, and keeps what has been shown of it.

    Args:
        passes: tells whether the gate passes a text. It is called with growing beginnings of the
            answer, one at a time. Sentences that arrive during a call are judged together in the
            next one, so a slow gate is asked less often.
    """

    def __init__(self, passes: Callable[[str], Awaitable[bool]]) -> None:
        self._passes = passes
        self._grown = ""
        self._news = asyncio.Event()
        self._closed = False
        self.text = ""
        """What the user has read, or is about to read."""
        self.checks = 0
        """Number of gate calls so far."""

    async def stream(self, chunks: AsyncIterator[str]) -> AsyncGenerator[str, None]:
        """Yield pieces that may be shown while `chunks` arrive.

        The stream ends with the chunks, at the first flag, or when the gate is closed.
        """
        reader = asyncio.ensure_future(self._read(chunks))
        # asyncio logs an exception that nobody reads.
        reader.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            while not self._closed and not (reader.done() and not self._news.is_set()):
                await self._news.wait()
                self._news.clear()
                passed = settled_sentences(without_reasoning(self._grown))
                if len(passed) <= len(self.text):
                    continue
                self.checks += 1
                if not await self._passes(passed) or self._closed:
                    return
                piece, self.text = passed[len(self.text) :], passed
                yield piece
        finally:
            reader.cancel()

    def close(self) -> str:
        """Show nothing more, and return what has been shown.

        Later calls return "": a turn may have several answers, of which only the first is streamed.
        """
        shown = "" if self._closed else self.text
        self._closed = True
        self._news.set()
        return shown

    async def _read(self, chunks: AsyncIterator[str]) -> None:
        try:
            async for chunk in chunks:
                self._grown += chunk
                self._news.set()
        finally:
            self._news.set()
