"""Several servers with the same model: the least busy one is asked, and another one where it fails."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ttsa_guard.errors import AccessError, InputError, ModelError, ModeratorError
from ttsa_guard.service import Breaker, Http, key_hint

T = TypeVar("T")
log = logging.getLogger(__name__)
_TRIES = 2  # of one server, for one answer
_TOKENS = 100
_CONNECTIONS = 256  # as many answers as a server works on at a time, unless told otherwise
_LARGEST = 2**28  # bytes of an answer: many candidates with the likelihood of each token
_GRACE = 1.0  # seconds that a server which is ready waits for the others to be


class Replica:
    """One server.

    Args:
        url: its base address.
        key: sent to it if it is not empty.
        key_name: the environment variable that holds the key, for hints.
        timeout: seconds for each 100 tokens of an answer, and between two events of a stream.
    """

    def __init__(self, url: str, *, key: str, key_name: str, timeout: float) -> None:
        self.url, self.name = url, urlsplit(url).netloc
        self.context = 0
        """Its longest prompt plus answer, in tokens; 0 until it is known."""
        self.load = 0
        """What it is doing now for us."""
        self.ready = False
        self.problem: ModelError | None = None
        self.breaker = Breaker()
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._key_name, self._timeout = key_name, timeout
        self._http = Http(timeout=timeout, tries=1, connections=_CONNECTIONS, breaker=self.breaker, largest=_LARGEST)
        self._checking: asyncio.Task[None] | None = None

    async def get(self, path: str) -> Any:
        """What it answers, or raises, as `Http.get` does."""
        return await self._http.get(self.url + path, headers=self._headers)

    async def post(self, path: str, body: Any) -> Any:
        """As `Http.post` does; longer answers may take longer."""
        seconds = self._timeout * max(1.0, body["max_tokens"] / _TOKENS)
        return await self._http.post(self.url + path, body, headers=self._headers, timeout=seconds)

    def events(self, path: str, body: Any) -> AsyncGenerator[Any, None]:
        return self._http.events(self.url + path, body, headers=self._headers)

    def check(self, examine: Callable[[Replica], Awaitable[int]]) -> asyncio.Task[None]:
        """Find out whether it can be used; callers at the same time share one examination."""
        loop = asyncio.get_running_loop()
        if self._checking is None or self._checking.done() or self._checking.get_loop() is not loop:
            self._checking = loop.create_task(self._examined(examine))
        return self._checking

    async def _examined(self, examine: Callable[[Replica], Awaitable[int]]) -> None:
        try:
            self.context = await examine(self)
            self.ready, self.problem = True, None
        except Exception as error:
            self.problem = self.explained(error)
            self.breaker.trip()
            log.warning("%s; it is left out for a while", self.problem.message)

    def explained(self, error: Exception) -> ModelError:
        """`error` as one of a model, with the server's name."""
        if not isinstance(error, ModeratorError | ModelError):
            return ModelError(f"the server {self.name} failed with {type(error).__name__}", hint="see its log")
        hint = error.hint
        if isinstance(error, AccessError):
            hint = f"{key_hint(self._key_name)}; the address comes without a path"
        elif isinstance(error, InputError):
            hint = "see its log; does it run the model that the configuration names?"
        return ModelError(f"{self.name}: {error.message}", hint=hint)

    async def close(self) -> None:
        if self._checking and self._checking.get_loop() is asyncio.get_running_loop():
            self._checking.cancel()
        await self._http.close()


class Replicas:
    """Servers with the same model.

    Args:
        members: the servers.
        examine: gives the context length of a server, or raises for one that cannot be used. Done before a server is used for
            the first time, and again after every fault of it.
    """

    def __init__(self, members: Sequence[Replica], examine: Callable[[Replica], Awaitable[int]]) -> None:
        self._members = tuple(members)
        self._examine = examine

    @property
    def contexts(self) -> list[int]:
        return [replica.context for replica in self._members if replica.context]

    async def do(self, work: Callable[[Replica], Awaitable[T]]) -> T:
        """The result of `work` with the server that has the least to do, or, where that fails, with another one.

        Raises:
            ModelError: it failed with all of them, or the request is wrong.
        """
        tried: Counter[Replica] = Counter()
        problem: ModelError | None = None
        while replica := await self._choose(tried):
            tried[replica] += 1
            replica.load += 1
            try:
                return await work(replica)
            except InputError as error:
                raise replica.explained(error) from None
            except ModeratorError as error:
                problem = replica.explained(error)
                self._doubt(replica)
            finally:
                replica.load -= 1
        found = problem or next((replica.problem for replica in self._members if replica.problem), None)
        raise (
            ModelError(found.message, hint=found.hint)
            if found
            else ModelError("all servers rest after failures", hint="are they up?")
        )

    async def close(self) -> None:
        for replica in self._members:
            await replica.close()

    async def _choose(self, tried: Counter[Replica]) -> Replica | None:
        """The least tried, then the least busy one of those that are ready; None if there is none.

        Only where none is ready does a request wait for an examination.
        """
        awake = [r for r in self._members if tried[r] < _TRIES and not r.breaker.resting]
        checks = {r.check(self._examine) for r in awake if not r.ready}
        while checks and not any(r.ready for r in awake):
            _, checks = await asyncio.wait(checks, return_when=asyncio.FIRST_COMPLETED)
            if checks:
                _, checks = await asyncio.wait(checks, timeout=_GRACE)
        ready = [r for r in awake if r.ready]
        return min(ready, key=lambda r: (tried[r], r.load)) if ready else None

    def _doubt(self, replica: Replica) -> None:
        """Leave a server that failed out for a while, unless it is the last one, and examine it before it is used again."""
        replica.ready = False
        if any(r is not replica and not r.breaker.resting for r in self._members):
            replica.breaker.trip()
