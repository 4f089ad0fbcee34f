"""``ttsa-guard serve``: a guarded chat endpoint in front of another one."""

from __future__ import annotations

import os
import re
from ipaddress import ip_address
from typing import Annotated

import typer

from ttsa_guard.cli import common
from ttsa_guard.cli.common import err, plain
from ttsa_guard.errors import ConfigError

_KEY = re.compile(r"[!-~]+")


def serve(
    upstream: Annotated[
        str,
        typer.Option(
            help="Base URL of the OpenAI-compatible server with the chat model.",
            envvar="TTSA_GUARD_UPSTREAM",
            show_default=False,
        ),
    ],
    config: common.Config = None,
    model: common.Model = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 8080,
    api_key_env: Annotated[
        str | None,
        typer.Option(
            help="Environment variable with the key that clients have to send.",
            show_default=False,
        ),
    ] = None,
    upstream_key_env: Annotated[
        str | None,
        typer.Option(help="Environment variable with the key of the upstream.", show_default=False),
    ] = None,
    max_body: Annotated[int, typer.Option(min=1, help="Largest request, in bytes.")] = 2**20,
    timeout: Annotated[
        float,
        typer.Option(min=0.1, help="Seconds for one request: the answer and its review."),
    ] = 120.0,
    concurrency: Annotated[
        int, typer.Option(min=1, help="Most requests at the same time; more get status 429.")
    ] = 64,
    grace: Annotated[
        float,
        typer.Option(min=0, help="Seconds for running requests, after SIGTERM or Ctrl-C."),
    ] = 25.0,
) -> None:
    """Serve a guarded chat endpoint: OpenAI's protocol, in front of a server that speaks it.

    The upstream has the chat model. Every answer of it is reviewed. --model and --config name the
    model that mends flagged ones, the gate and all else, as for the other commands.
    Exit status 0: SIGTERM or Ctrl-C has stopped it.

    Example: ttsa-guard serve --upstream http://127.0.0.1:8000/v1 --config settings.yml
    """
    # What is wrong shows before a model is loaded.
    from ttsa_guard.serve.upstream import Upstream

    settings, key = common.settings(model, config), _key(api_key_env, "--api-key-env")
    behind = Upstream(
        upstream,
        key=_key(upstream_key_env, "--upstream-key-env"),
        timeout=timeout,
        connections=concurrency,
    )
    if key is None and not _local(host):
        _say(f"warning: whoever reaches {host} may use this endpoint; add --api-key-env NAME")
    guard = common.build_guard(settings)

    from ttsa_guard.serve.app import Endpoint, Limits
    from ttsa_guard.serve.metrics import exporter
    from ttsa_guard.serve.server import serve as run

    metrics = exporter()
    if metrics is None:
        _say("note: /metrics needs pip install 'ttsa-guard[telemetry]'")

    async def work() -> None:
        endpoint = Endpoint(
            guard,
            behind,
            limits=Limits(body=max_body, seconds=timeout, concurrency=concurrency),
            key=key,
            metrics=metrics,
        )
        await run(endpoint, host=host, port=port, grace=grace, ready=_ready)

    with common.quiet():
        common.run(guard, work())
    _say("stopped")


def _ready(address: str) -> None:
    _say(f"listening on {address}/v1; Ctrl-C stops")


def _say(line: str) -> None:
    err.print(plain(line), soft_wrap=True)


def _local(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _key(name: str | None, option: str) -> str | None:
    """Return the key in an environment variable.

    Raises:
        ConfigError: it is not set, or no header can hold it.
    """
    if name is None:
        return None
    from ttsa_guard.service import key_hint

    key = os.environ.get(name, "").strip()
    if not key:
        raise ConfigError(f"{option} names a variable without a key", hint=key_hint(name))
    if not _KEY.fullmatch(key):
        raise ConfigError(
            f"the key of {option} has characters that no header can hold",
            hint="use letters, digits and signs of ASCII, without spaces",
        )
    return key
