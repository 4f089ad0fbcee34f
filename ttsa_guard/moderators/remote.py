"""What all moderation services have in common.

These are keys, batches, a small memory of verdicts, and only one request at a time for the same
text.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import Field

from ttsa_guard.errors import ConfigError, InputError, ModeratorError
from ttsa_guard.moderators.categories import CategoryOptions
from ttsa_guard.service import Http, key_hint
from ttsa_guard.verdict import Verdict

T = TypeVar("T")


class RemoteOptions(CategoryOptions):
    """Options of every service. Keys come from the environment only."""

    key: str = Field(description="environment variable that holds the key")
    timeout: float = Field(5.0, gt=0, description="seconds for one try")
    tries: int = Field(3, ge=1, description="at most, for faults that may pass")
    requests_per_second: float | None = Field(None, gt=0, description="what your plan allows")
    tokens_per_minute: float | None = Field(
        None, gt=0, description="what your plan allows; four characters count as a token"
    )
    cache: int = Field(
        1024, ge=0, description="verdicts that are remembered, by a hash of the text"
    )


class Remote(ABC):
    """A moderation service.

    Each distinct text is asked about once, even if several callers in an event loop ask at the same
    time. Empty texts are never sent. Threads with event loops of their own may share a service.

    Raises:
        ConfigError: the environment variable with the key is not set.
    """

    name: str
    batch_size = 1

    def __init__(self, options: RemoteOptions, *, http: Http | None = None) -> None:
        self.options = options
        self._key = os.environ.get(options.key, "").strip()
        if not self._key:
            raise ConfigError(f"moderator {self.name!r} has no key", hint=key_hint(options.key))
        self._http = http or Http(
            timeout=options.timeout,
            tries=options.tries,
            requests_per_second=options.requests_per_second,
            units_per_minute=options.tokens_per_minute,
        )
        self._known: dict[bytes, Verdict] = {}
        self._lock = threading.Lock()
        self._asked: dict[
            tuple[asyncio.AbstractEventLoop, bytes], asyncio.Future[Verdict | None]
        ] = {}

    @abstractmethod
    async def scores(self, texts: Sequence[str]) -> list[Mapping[str, Any]]:
        """Return the category scores of at most `batch_size` texts, as the service gives them.

        Raises:
            ModeratorError: the service cannot be asked, or its answer is not what it documents.
        """

    async def moderate(self, texts: Sequence[str], *, prompts: Sequence[str]) -> list[Verdict]:
        """Judge `texts`; `prompts` are not sent.

        A text that cannot be judged gets a failed verdict with the reason.
        """
        keys = [_hash(text) for text in texts]
        by_key = dict(zip(keys, texts, strict=True))
        found = {
            key: Verdict.scored(self.name, 0.0, threshold=0.5)
            for key, text in by_key.items()
            if not text.strip()
        }
        with self._lock:
            found |= {key: self._known[key] for key in keys if key in self._known}
        wanted = {key: text for key, text in by_key.items() if key not in found}
        loop = asyncio.get_running_loop()
        others = {key: self._asked[loop, key] for key in wanted if (loop, key) in self._asked}
        found |= await self._ask({key: text for key, text in wanted.items() if key not in others})
        for key, answer in others.items():
            verdict = await asyncio.shield(answer)
            # None means that the caller who asked has given up.
            found[key] = verdict or (await self.moderate([wanted[key]], prompts=[""]))[0]
        return [found[key] for key in keys]

    async def close(self) -> None:
        """Close the connections to the service."""
        await self._http.close()

    async def _ask(self, wanted: Mapping[bytes, str]) -> dict[bytes, Verdict]:
        loop = asyncio.get_running_loop()
        for key in wanted:
            self._asked[loop, key] = loop.create_future()
        items = list(wanted.items())
        found: dict[bytes, Verdict] = {}
        try:
            batches = [
                items[i : i + self.batch_size] for i in range(0, len(items), self.batch_size)
            ]
            for batch, verdicts in zip(
                batches, await asyncio.gather(*map(self._judged, batches)), strict=True
            ):
                found |= {key: verdict for (key, _), verdict in zip(batch, verdicts, strict=True)}
        finally:
            for key in wanted:
                answer = self._asked.pop((loop, key))
                if not answer.done():
                    answer.set_result(found.get(key))
        self._remember(found)
        return found

    async def _judged(self, batch: Sequence[tuple[bytes, str]]) -> list[Verdict]:
        """Return the verdicts on a batch.

        If the service refuses the batch, it is split until the text that cannot be judged is alone.
        """
        try:
            scores = await self.scores([text for _, text in batch])
            if len(scores) != len(batch):
                raise ModeratorError(
                    f"the service gave {len(scores)} results for {len(batch)} texts"
                )
        except InputError as error:
            if len(batch) == 1:
                return [Verdict.failure(self.name, error.message)]
            half = len(batch) // 2
            return [*await self._judged(batch[:half]), *await self._judged(batch[half:])]
        except ModeratorError as error:
            return [Verdict.failure(self.name, error.message)] * len(batch)
        return [self._verdict(found) for found in scores]

    def _verdict(self, scores: Mapping[str, Any]) -> Verdict:
        try:
            return self.options.judge(self.name, scores)
        except KeyError as error:
            return Verdict.failure(self.name, f"the service gave no category {error}")
        except (TypeError, ModeratorError):
            return Verdict.failure(
                self.name, "the service gave a score that is no number in [0, 1]"
            )

    def _remember(self, found: Mapping[bytes, Verdict]) -> None:
        with self._lock:
            self._known |= {
                key: verdict for key, verdict in found.items() if verdict.decision != "failed"
            }
            while len(self._known) > self.options.cache:
                del self._known[next(iter(self._known))]

    def _tokens(self, texts: Sequence[str]) -> float:
        return sum(len(text) / 4 + 1 for text in texts)


def member(answer: Any, kind: type[T], *path: str) -> T:
    """Return the value at `path` in a service's answer.

    Raises:
        ModeratorError: there is no value of type `kind`.
    """
    for step in path:
        answer = answer.get(step) if isinstance(answer, dict) else None
    if not isinstance(answer, kind) or (kind is int and isinstance(answer, bool)):
        raise ModeratorError(
            f"the service's answer has no {'.'.join(path) or 'result'}", hint="is it that service?"
        )
    return answer


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
