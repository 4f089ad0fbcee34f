"""Ask the least busy one of several servers with the same model, and another one if it fails."""

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
_TRIES = 2  # tries with one server, for one answer
_TOKENS = 100
_CONNECTIONS = 256  # answers that a server works on at a time by default
_LARGEST = 2**28  # bytes of an answer, which may hold the likelihood of each of many tokens
_GRACE = 1.0  # seconds to wait for other servers when the first one is ready


class Replica:
    """One server.

    Args:
        url: its base address.
        key: is sent to the server if it is not empty.
        key_name: the environment variable that holds the key, for hints.
        timeout: seconds for each 100 tokens of an answer, and between two events of a stream.
    """

    def __init__(self, url: str, *, key: str, key_name: str, timeout: float) -> None:
        self.url, self.name = url, urlsplit(url).netloc
        self.context = 0
        """The server's longest prompt plus answer, in tokens; 0 until it is known."""
        self.load = 0
        """Number of requests that the server is working on for us."""
        self.ready = False
        self.problem: ModelError | None = None
        self.breaker = Breaker()
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._key_name, self._timeout = key_name, timeout
        self._http = Http(
            timeout=timeout,
            tries=1,
            connections=_CONNECTIONS,
            breaker=self.breaker,
            largest=_LARGEST,
        )
        self._checking: asyncio.Task[None] | None = None

    async def get(self, path: str) -> Any:
        """Return the JSON that the server answers to a GET request. Raises as `Http.get` does."""
        return await self._http.get(self.url + path, headers=self._headers)

    async def post(self, path: str, body: Any) -> Any:
        """Return the JSON that the server answers to a POST request. Raises as `Http.post` does.

        The time limit grows with the ``max_tokens`` in the body.
        """
        seconds = self._timeout * max(1.0, body["max_tokens"] / _TOKENS)
        return await self._http.post(self.url + path, body, headers=self._headers, timeout=seconds)

    def events(self, path: str, body: Any) -> AsyncGenerator[Any, None]:
        """Yield the JSON of each server-sent event; see `Http.events`."""
        return self._http.events(self.url + path, body, headers=self._headers)

    def check(self, examine: Callable[[Replica], Awaitable[int]]) -> asyncio.Task[None]:
        """Start to examine the server, if needed.

        Callers at the same time share one examination.
        """
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
        """Return `error` as a `ModelError` that names the server."""
        if not isinstance(error, ModeratorError | ModelError):
            return ModelError(
                f"the server {self.name} failed with {type(error).__name__}", hint="see its log"
            )
        hint = error.hint
        if isinstance(error, AccessError):
            hint = f"{key_hint(self._key_name)}; the address comes without a path"
        elif isinstance(error, InputError):
            hint = "see its log; does it run the model that the configuration names?"
        return ModelError(f"{self.name}: {error.message}", hint=hint)

    async def close(self) -> None:
        """Close the connections to the server."""
        if self._checking and self._checking.get_loop() is asyncio.get_running_loop():
            self._checking.cancel()
        await self._http.close()


class Replicas:
    """Several servers with the same model.

    Args:
        members: the servers.
        examine: returns the context length of a server, in tokens, or raises if the server cannot
            be used. It is called before a server is used for the first time, and again after every
            fault of the server.
    """

    def __init__(
        self, members: Sequence[Replica], examine: Callable[[Replica], Awaitable[int]]
    ) -> None:
        self._members = tuple(members)
        self._examine = examine

    @property
    def contexts(self) -> list[int]:
        """The context lengths, in tokens, of the servers that have been examined."""
        return [replica.context for replica in self._members if replica.context]

    async def do(self, work: Callable[[Replica], Awaitable[T]]) -> T:
        """Return the result of `work` with the least busy server; if it fails, with another one.

        Raises:
            ModelError: the work failed with all servers, or the request is wrong.
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
        found = problem or next(
            (replica.problem for replica in self._members if replica.problem), None
        )
        raise (
            ModelError(found.message, hint=found.hint)
            if found
            else ModelError("all servers rest after failures", hint="are they up?")
        )

    async def close(self) -> None:
        """Close the connections to all servers."""
        for replica in self._members:
            await replica.close()

    async def _choose(self, tried: Counter[Replica]) -> Replica | None:
        """Return a server that is ready, or None.

        It is the least tried one, and of several such servers the least busy one. A request waits
        for an examination only if no server is ready.
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
        """Leave out a server that failed for a while, and examine it before it is used again.

        The last server that is left is not left out.
        """
        replica.ready = False
        if any(r is not replica and not r.breaker.resting for r in self._members):
            replica.breaker.trip()
