"""Every way of running a NeMo app, times everything that can happen to an answer. Servers:
test_server.py."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from nemoguardrails import LLMRails

from ttsa_guard.nemo import BackendModel, install

from .conftest import make_config
from .matrix import ENDS, PROGRESSIVE, make_guard


def app_for(version: str, **settings: Any) -> LLMRails:
    guard = make_guard(settings)
    app = LLMRails(make_config(version, passthrough=True), llm=BackendModel(guard.backend))
    install(app, guard)
    return app


async def plain(app: LLMRails, messages: Any) -> str:
    reply = await app.generate_async(messages=messages)
    assert "seekrit" not in str(reply)
    return str(reply["content"])


async def streaming(app: LLMRails, messages: Any) -> str:
    return "".join([piece async for piece in app.stream_async(messages=messages)])


@pytest.mark.parametrize("ask", [plain, streaming])
@pytest.mark.parametrize("mode", ["buffered", "progressive"])
@pytest.mark.parametrize("case", ENDS)
def test_the_user_reads_the_right_text(
    version: str, mode: str, ask: Any, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        reply = asyncio.run(
            ask(app_for(version, streaming=mode), [{"role": "user", "content": case}])
        )
    assert reply == (PROGRESSIVE if (mode, ask) == ("progressive", streaming) else ENDS)[case]
    assert "seekrit" not in caplog.text


@pytest.mark.parametrize("ask", [plain, streaming])
def test_all_of_it_at_once(version: str, ask: Any) -> None:
    async def run() -> list[str]:
        # Ten conversations on one busy core: the limits of a single one would be missed by chance.
        app = app_for(version, streaming="progressive", gate_seconds=2.0, budget={"seconds": 4.0})
        return list(
            await asyncio.gather(*(ask(app, [{"role": "user", "content": case}]) for case in ENDS))
        )

    assert asyncio.run(run()) == list((ENDS if ask is plain else PROGRESSIVE).values())
