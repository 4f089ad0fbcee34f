"""Run the endpoint until it is told to stop, and let what runs come to its end."""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
from collections.abc import Callable
from contextlib import suppress

from aiohttp import web

from ttsa_guard.errors import ConfigError
from ttsa_guard.serve.app import Endpoint

_LAST = 0.2
"""Seconds for a request that is cancelled at the end."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


async def serve(
    endpoint: Endpoint, *, host: str, port: int, grace: float, ready: Callable[[str], None]
) -> None:
    """Listen until SIGTERM or Ctrl-C; then finish what runs. A second signal ends it at once.

    Args:
        port: 0 takes a free one.
        grace: longest time for what runs, in seconds.
        ready: is told the address when the endpoint listens.

    Raises:
        ConfigError: the address cannot be had.
    """
    stop = asyncio.Event()
    runner = web.AppRunner(
        endpoint.app(),
        access_log=None,
        logger=_quiet_logger(),
        handler_cancellation=True,  # a client that leaves frees its work
        shutdown_timeout=_LAST,
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {host}:{port}: {error.strerror or type(error).__name__}",
                hint=(
                    "give another --port"
                    if error.errno in (errno.EADDRINUSE, errno.EACCES)
                    else "give an address of this machine to --host"
                ),
            ) from None
        _until_signal(stop)
        ready(_address(host, runner))
        await stop.wait()
        # New connections are refused; on those that are open, the endpoint refuses new requests.
        await site.stop()
        await endpoint.drain(grace)
    finally:
        await runner.cleanup()
        await endpoint.upstream.close()


def _until_signal(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()

    def told() -> None:
        stop.set()
        for number in _SIGNALS:  # from now on they end the process
            loop.remove_signal_handler(number)

    with suppress(NotImplementedError):  # on Windows, Ctrl-C ends it at once
        for number in _SIGNALS:
            loop.add_signal_handler(number, told)


def _address(host: str, runner: web.AppRunner) -> str:
    port = runner.addresses[0][1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _quiet_logger() -> logging.Logger:
    """Return a logger for aiohttp, which would quote requests, and so keys and texts."""
    logger = logging.getLogger("ttsa_guard.serve.http")
    if not logger.filters:
        logger.addFilter(_without_texts)
    return logger


def _without_texts(record: logging.LogRecord) -> bool:
    kind = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else "a fault"
    record.msg, record.args = f"a connection failed with {kind}", ()
    record.exc_info = record.exc_text = None
    return True
