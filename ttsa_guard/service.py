"""Ask a service for JSON over HTTP: one session, bounded retries, pacing, and a circuit breaker.

No error of this module holds a text, a key, or an address with a key in it. Errors hold only the
kind of fault and the status.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from io import BytesIO
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ttsa_guard.budget import Clock
from ttsa_guard.errors import AccessError, InputError, ModeratorError
from ttsa_guard.settings import VARIABLE

if TYPE_CHECKING:
    # It is imported where it is used, because commands that check settings have to start soon.
    import aiohttp

_PACE = 0.95
"""Share of a rate limit that is used.

Arrival times jitter, and a service refuses calls that exceed its limit for a moment.
"""
_LONGEST_WAIT = 20.0
"""Longest pause between two tries, in seconds. If the service asks for more, the call fails."""
_LONGEST_CONNECT = 3.0
"""Longest time to open a connection, in seconds."""
_KEEP_ALIVE = 4.0
"""Seconds that an idle connection is kept.

Common servers close it after 5; a request that is sent at that moment fails.
"""
_LONGEST_EVENT = 2**24
"""Largest server-sent event, in bytes."""
_LARGEST = 2**20
"""Default for the largest answer, in bytes."""
_BITS = zlib.MAX_WBITS | 32
"""A setting of zlib: the data begin with a gzip or a zlib header."""
_JSON = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
_ACCESS = {401, 402, 403, 404, 405, 407}
_INPUT = {400, 413, 414, 422}


@dataclass
class Pacer:
    """Spaces calls evenly, so that at most `rate` units start per second.

    Args:
        rate: units per second; None means no limit.
    """

    rate: float | None
    clock: Clock = time.monotonic
    sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep
    _free: float = field(default=0.0, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    async def take(self, units: float = 1.0) -> None:
        """Wait until a call of `units` units may start. Several threads may call this."""
        if self.rate is None:
            return
        with self._lock:
            now = self.clock()
            start = max(now, self._free)
            self._free = start + units / (self.rate * _PACE)
        if start > now:
            await self.sleep(start - now)


@dataclass
class Breaker:
    """Lets calls fail at once for a while after a service has failed several times in a row.

    Args:
        failures: number of failures in a row that begin a rest.
        rest: length of a rest, in seconds.
    """

    clock: Clock = time.monotonic
    failures: int = 5
    rest: float = 10.0
    _count: int = field(default=0, init=False)
    _until: float = field(default=0.0, init=False)

    @property
    def resting(self) -> float:
        """Seconds that are left of the rest; 0 if there is none."""
        return max(0.0, self._until - self.clock())

    def check(self) -> None:
        """Raise during a rest.

        Raises:
            ModeratorError: the service rests.
        """
        if left := self.resting:
            raise ModeratorError(
                f"the service rests for {left:.0f} s after {self._count} failures", hint="is it up?"
            )

    def succeeded(self) -> None:
        """Note that a call succeeded, which ends a rest."""
        self._count = 0
        self._until = 0.0

    def failed(self) -> None:
        """Note that a call failed. Enough failures in a row begin a rest."""
        self._count += 1
        if self._count >= self.failures:
            self.trip()

    def trip(self) -> None:
        """Begin a rest now."""
        self._until = self.clock() + self.rest


@dataclass(frozen=True)
class _Connections:
    """The connections of one event loop. They cannot move to another loop.

    Args:
        slots: one for each connection. A call waits for a slot before it is sent, so that this wait
            does not count as the service's time.
        life: a generator; closing it closes the session.
    """

    session: aiohttp.ClientSession
    slots: asyncio.Semaphore
    life: AsyncGenerator[aiohttp.ClientSession, None]


class Http:
    """Asks a service for JSON. It may be used in several event loops and threads at the same time.

    Args:
        timeout: seconds for one try, including reading the answer; in `events`, between two events.
            Waiting for a free connection, or for a turn within the rate limits, does not count.
        tries: the largest number of tries for faults that may pass.
        requests_per_second, units_per_minute: rate limits of the service; None means no limit.
        connections: the largest number of connections in each event loop.
        largest: the largest answer, in bytes, also after decompression.
    """

    def __init__(
        self,
        *,
        timeout: float,
        tries: int,
        requests_per_second: float | None = None,
        units_per_minute: float | None = None,
        connections: int = 100,
        breaker: Breaker | None = None,
        clock: Clock = time.monotonic,
        sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
        largest: int = _LARGEST,
    ) -> None:
        self._timeout = timeout
        self._connections = connections
        self._tries = tries
        self._largest = largest
        self._sleep, self._jitter = sleep, jitter
        self._requests = Pacer(requests_per_second, clock, sleep)
        self._units = Pacer(units_per_minute / 60 if units_per_minute else None, clock, sleep)
        self._breaker = breaker or Breaker(clock)
        self._opened: dict[asyncio.AbstractEventLoop, _Connections] = {}

    async def get(self, url: str, *, headers: Mapping[str, str] | None = None) -> Any:
        """Return the JSON that the service answers to a GET request. Raises as `post` does."""
        return await self._ask("GET", url, headers=headers)

    async def post(
        self,
        url: str,
        body: Any,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        units: float = 1.0,
        timeout: float | None = None,
    ) -> Any:
        """Return the JSON that the service answers to a POST request.

        Args:
            body: is sent as JSON.
            units: the size of this call, in the units of `units_per_minute`.
            timeout: seconds for one try of this call, instead of the usual ones.

        Raises:
            AccessError: the service refuses the key, or does not know the address.
            InputError: the service refuses the request.
            ModeratorError: the service is down, too slow or answers garbage, after all tries.
        """
        sent = {"data": _encoded(body), "params": params}
        return await self._ask("POST", url, headers=headers, units=units, timeout=timeout, **sent)

    async def events(
        self, url: str, body: Any, *, headers: Mapping[str, str] | None = None
    ) -> AsyncGenerator[Any, None]:
        """Yield the JSON of each server-sent event, until the service says that it is done.

        There is only one try. Raises as `post` does.
        """
        import aiohttp

        self._breaker.check()
        sent: dict[str, Any] = {
            "data": BytesIO(_encoded(body)),
            "headers": {**_JSON, **(headers or {})},
            "timeout": aiohttp.ClientTimeout(
                sock_connect=_LONGEST_CONNECT, sock_read=self._timeout
            ),
            "read_bufsize": _LONGEST_EVENT,
        }
        try:
            with _faults():
                async with (
                    self._connected() as session,
                    session.request("POST", url, allow_redirects=False, **sent) as response,
                ):
                    if response.status != 200:
                        _refuse(response, await self._read(response))
                    async for line in response.content:
                        if (event := line.removeprefix(b"data:").strip()) == b"[DONE]":
                            self._breaker.succeeded()
                            return
                        if line.startswith(b"data:"):
                            yield json.loads(event)
            raise _LaterError(
                ModeratorError(
                    "the service stopped in the middle of its answer", hint="see its status"
                )
            )
        except _LaterError as later:
            self._breaker.failed()
            raise later.problem from None

    async def _ask(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None,
        units: float = 1.0,
        timeout: float | None = None,
        **sent: Any,
    ) -> Any:
        import aiohttp

        sent["headers"] = {**_JSON, **(headers or {})}
        sent["timeout"] = aiohttp.ClientTimeout(
            total=timeout or self._timeout, sock_connect=_LONGEST_CONNECT
        )
        problem = ModeratorError("the service was not asked")
        # aiohttp-retry does not do this loop: it repeats a session's `request` alone, so the wait
        # for a turn would count as the service's time, and neither the breaker nor the bounded
        # reading of the body would be part of a try.
        for attempt in range(self._tries):
            self._breaker.check()
            await self._units.take(units)
            await self._requests.take()
            try:
                answer = await self._once(method, url, **sent)
            except (AccessError, InputError):
                self._breaker.succeeded()  # the service is up
                raise
            except _LaterError as later:
                problem, wait = later.problem, later.wait
                if not later.busy:
                    self._breaker.failed()
            else:
                self._breaker.succeeded()
                return answer
            pause = max(wait, self._jitter() * min(5.0, 0.25 * 2**attempt))
            if attempt + 1 < self._tries:
                if pause > _LONGEST_WAIT:
                    break
                await self._sleep(pause)
        raise problem

    async def _once(self, method: str, url: str, *, data: bytes = b"", **sent: Any) -> Any:
        if data:  # aiohttp warns of more than 1 MiB at once, as bodies with images have
            sent["data"] = BytesIO(data)
        async with self._connected() as session:
            self._breaker.check()  # a rest may have begun while this call waited for a connection
            with _faults():
                async with session.request(method, url, allow_redirects=False, **sent) as response:
                    raw = await self._read(response)
        _refuse(response, raw)
        try:
            return json.loads(raw)
        except (ValueError, RecursionError):
            raise _LaterError(
                ModeratorError(
                    "the service answered something that is not JSON", hint="see its address"
                )
            ) from None

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        """Return the body.

        Neither it nor its decompressed form exceeds the largest size that is allowed.
        """
        raw = bytearray()
        async for chunk in response.content.iter_any():
            raw += chunk
            if len(raw) > self._largest:
                raise _too_large()
        coding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if coding == "identity":
            return bytes(raw)
        if coding not in ("gzip", "deflate"):
            raise ValueError("a coding that was not asked for")
        try:
            body = zlib.decompressobj(_BITS).decompress(raw, self._largest + 1)
        except zlib.error:
            raise ValueError("not what its coding says") from None
        if len(body) > self._largest:
            raise _too_large()
        return body

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[aiohttp.ClientSession]:
        """Wait for a free connection of this event loop, and yield its session."""
        loop = asyncio.get_running_loop()
        if loop not in self._opened:
            for closed in [other for other in self._opened if other.is_closed()]:
                self._opened.pop(closed, None)
            # Before a loop ends it closes its generators, and this generator closes the session.
            life = self._life(loop)
            self._opened[loop] = _Connections(
                await anext(life), asyncio.Semaphore(self._connections), life
            )
        connections = self._opened[loop]
        async with connections.slots:
            yield connections.session

    async def _life(
        self, loop: asyncio.AbstractEventLoop
    ) -> AsyncGenerator[aiohttp.ClientSession, None]:
        import aiohttp

        connector = aiohttp.TCPConnector(limit=self._connections, keepalive_timeout=_KEEP_ALIVE)
        # `_read` decompresses, within a bound. No service needs cookies.
        session = aiohttp.ClientSession(
            connector=connector, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar(loop=loop)
        )
        try:
            yield session
        finally:
            self._opened.pop(loop, None)
            await session.close()

    async def close(self) -> None:
        """Close the connections of this event loop.

        Those of other loops are closed with their loops.
        """
        if connections := self._opened.get(asyncio.get_running_loop()):
            await connections.life.aclose()


class _LaterError(Exception):
    """A fault that may pass.

    Args:
        wait: seconds that the service asks to wait.
        busy: whether the service is up but has too much to do.
    """

    def __init__(self, problem: ModeratorError, wait: float = 0.0, *, busy: bool = False) -> None:
        super().__init__()
        self.problem, self.wait, self.busy = problem, wait, busy


def _too_large() -> _LaterError:
    return _LaterError(
        ModeratorError("the service's answer is too large", hint="is it that service?")
    )


@contextmanager
def _faults() -> Iterator[None]:
    """Turn faults of the connection into `_LaterError`."""
    import aiohttp

    try:
        yield
    except asyncio.TimeoutError:
        raise _LaterError(
            ModeratorError("the service took too long", hint="raise its timeout, or see its status")
        ) from None
    except (aiohttp.ClientError, OSError, ValueError, RecursionError) as error:
        problem = f"the connection to the service failed with {type(error).__name__}"
        raise _LaterError(ModeratorError(problem, hint="see its address and status")) from None


def _refuse(response: aiohttp.ClientResponse, raw: bytes) -> None:
    """Raise for every status but 200."""
    status = response.status
    if status == 200:
        return
    problem: ModeratorError
    if status in _ACCESS:
        problem = AccessError(
            f"the service refuses access: HTTP {status}",
            hint="see its key, its address and your plan",
        )
    elif status in _INPUT:
        hint = "too long, or in another language?"
        problem = InputError(f"the service refuses the request: HTTP {status}", hint=hint, said=raw)
    else:
        problem = ModeratorError(
            f"the service failed: HTTP {status}", hint="see its status and your limits"
        )
    problem.status = status
    if status in _ACCESS | _INPUT:
        raise problem
    raise _LaterError(problem, _seconds(response.headers.get("Retry-After")), busy=status == 429)


def base_address(url: str) -> str:
    """Return a base URL without a slash at its end, and with a path: ``/v1`` if it has none.

    Raises:
        ValueError: it is none, or holds a key. The message is what to say after its name.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("is no address of a server")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("holds more than an address")
    return url.rstrip("/") + ("" if parts.path.strip("/") else "/v1")


def key_hint(name: str) -> str:
    """Return what to do about a missing key.

    Args:
        name: the name of the environment variable that should hold the key. If it looks like a key
            itself, it is not shown.
    """
    if VARIABLE.fullmatch(name):
        return f"set the environment variable {name} to its key"
    return "give the NAME of an environment variable, such as MY_SERVICE_KEY, never the key itself"


def _encoded(body: Any) -> bytes:
    return json.dumps(body).encode("ascii")  # ASCII escapes lone surrogates, too


def _seconds(retry_after: str | None) -> float:
    """Return the seconds in a ``Retry-After`` header, a number or a date; 0 if it is neither."""
    try:
        return max(0.0, float(retry_after or 0))
    except ValueError:
        pass
    try:
        date = parsedate_to_datetime(str(retry_after))
        left = date.replace(tzinfo=date.tzinfo or timezone.utc) - datetime.now(timezone.utc)
        return max(0.0, left.total_seconds())
    except (ValueError, TypeError):
        return 0.0
