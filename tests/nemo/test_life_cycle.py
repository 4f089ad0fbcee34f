"""Apps made, copied, forked, moved between event loops and given up: they work, or are refused with
the mend."""

from __future__ import annotations

import asyncio
import copy
import gc
import logging
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextvars import Context
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from nemoguardrails import LLMRails
from nemoguardrails.colang.v2_x.runtime.serialization import json_to_state, state_to_json
from nemoguardrails.testing import FakeLLMModel

from ttsa_guard.errors import ConfigError, ModelError
from ttsa_guard.guard import Guard
from ttsa_guard.nemo import BackendModel, install, installed_guard, passthrough_app, rails_path
from ttsa_guard.telemetry import span
from ttsa_guard.testing import ScriptedBackend, ScriptedModerator

from .conftest import FALLBACK, FLAGGED, SAFE, STEERED, USER, make_app, make_config, make_guard, say

EMBEDDED = [{"type": "main", "engine": "ttsa_guard", "model": "embedded"}]
OURS = {"import_paths": [rails_path()], "rails": {"output": {"flows": ["ttsa steer output"]}}}


def model(*answers: str) -> FakeLLMModel:
    return FakeLLMModel(responses=list(answers))


# ------------------------------------------------------------------ one configuration, several apps


WAYS: dict[str, Any] = {"same": lambda c: c, "pickled": lambda c: pickle.loads(pickle.dumps(c))}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_configuration_is_left_as_it_was(version: str, way: Any) -> None:
    config = make_config(version)
    first = LLMRails(config, llm=model(FLAGGED, SAFE))
    install(first, make_guard())
    assert "ttsa steer output" not in config.rails.output.flows
    second = LLMRails(way(config), llm=model(FLAGGED))
    if version == "1.0":
        assert say(second)["content"] == FLAGGED  # it has no guard, and nothing of the other's
        second.update_llm(model(FLAGGED))
    install(second, make_guard())
    assert [say(app)["content"] for app in (second, first, first)] == [STEERED, STEERED, SAFE]


def test_an_app_with_a_guard_is_not_copied_without_it() -> None:
    app = make_app("1.0", make_guard())
    for way in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(ConfigError, match="cannot be pickled or copied"):
            way(app)


def test_our_engine_lends_no_other_app_its_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Guard, "from_config", lambda *_, **__: make_guard())
    app = LLMRails(make_config("1.0", models=EMBEDDED, **OURS))
    with pytest.raises(ConfigError, match="an app without our rail"):
        LLMRails(make_config("1.0", models=EMBEDDED))
    assert installed_guard(app)
    assert isinstance(app.llm, BackendModel)


def test_progressive_streams_of_single_calls_are_refused() -> None:
    rails = {"dialog": {"single_call": {"enabled": True}}}
    with pytest.raises(ConfigError, match="single_call"):
        make_app("1.0", make_guard(streaming="progressive"), rails=rails)
    make_app("1.0", make_guard(), rails=rails)


def test_apps_with_and_without_a_guard_side_by_side(caplog: pytest.LogCaptureFixture) -> None:
    """The one without goes on logging what the host logs."""
    plain, ours = (
        LLMRails(make_config("1.0"), llm=model(SAFE)),
        make_app("1.0", make_guard(), [FLAGGED]),
    )

    async def both() -> list[Any]:
        return await asyncio.gather(*(app.generate_async(messages=USER) for app in (plain, ours)))

    with caplog.at_level(logging.DEBUG):
        assert [reply["content"] for reply in asyncio.run(both())] == [SAFE, STEERED]
    assert any(
        r.getMessage().startswith("Processing event") and "How do I" in r.getMessage()
        for r in caplog.records
    )
    assert SAFE in caplog.text
    assert "seekrit" not in caplog.text


def test_a_state_of_colang_2_can_be_saved() -> None:
    app = make_app("2.x", make_guard([STEERED, STEERED]), [FLAGGED, SAFE, FLAGGED])

    async def run() -> list[str]:
        said, state = [], None
        for _ in range(3):
            asked = [{"type": "UtteranceUserActionFinished", "final_transcript": "How do I do it?"}]
            new, state = await app.process_events_async(asked, state, blocking=True)
            [spoken] = [event for event in new if event["type"] == "StartUtteranceBotAction"]
            said.append(spoken["script"])
            finished = {
                "type": "UtteranceBotActionFinished",
                "final_script": spoken["script"],
                "is_success": True,
            }
            _, state = await app.process_events_async(
                [{**finished, "action_uid": spoken["action_uid"]}], state, blocking=True
            )
            saved = state_to_json(state)
            assert "seekrit" not in saved
            state = json_to_state(saved)
        return said

    assert asyncio.run(run()) == [STEERED, SAFE, STEERED]


# ------------------------------------------------------------------ event loops, threads, processes


def test_several_event_loops_in_turn(version: str) -> None:
    app = make_app(version, make_guard([STEERED] * 3), [FLAGGED, SAFE, FLAGGED])
    assert [say(app)["content"] for _ in range(3)] == [STEERED, SAFE, STEERED]


@pytest.fixture
def no_collections() -> Iterator[None]:
    """Keep the garbage collector from running inside `ast.parse`, by which the host evaluates.

    With Python 3.11.0 to 3.11.7, two threads that parse at once fail if it does (CPython issue
    106905).
    """
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collections")
def test_event_loops_in_threads(version: str) -> None:
    backend = ScriptedBackend(lambda request: STEERED if request.temperature == 1 else FLAGGED)
    guard = make_guard(backend, gate=ScriptedModerator(name="gate", delay=0.005))
    app = LLMRails(make_config(version, passthrough=True), llm=BackendModel(backend))
    install(app, guard)
    said: list[str] = []

    def talk() -> None:
        said.extend(asyncio.run(app.generate_async(messages=USER))["content"] for _ in range(3))

    threads = [threading.Thread(target=talk) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert said == [STEERED] * 12


FORKED = """
import asyncio, os, sys
from tests.nemo.conftest import FLAGGED, USER, make_guard
from ttsa_guard.nemo import passthrough_app

def use(app, guard):
    print(asyncio.run(guard.review("q", FLAGGED)).action, flush=True)
    try:
        print(asyncio.run(app.generate_async(messages=USER))["content"], flush=True)
    except Exception as error:
        print(str(error).replace("\\n", " "), flush=True)

guard = make_guard(lambda request: "Here is a steered answer.")
app = passthrough_app(guard)
if sys.argv[1] == "after":
    use(app, guard)
child = os.fork()
if not child:
    use(app, guard)
    os._exit(0)
os.waitpid(child, 0)
"""


@pytest.mark.parametrize("first_use", ["after", "before"])
def test_a_fork(first_use: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", FORKED, first_use],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
    )
    child = run.stdout.splitlines()[-2:]
    if first_use == "before":
        assert child == ["swap", STEERED]
    else:
        assert run.stdout.splitlines()[:2] == ["swap", STEERED]
        assert child[0] == "fallback"
        assert "forked after the model had been used" in child[1]
        assert "gunicorn without preload_app" in run.stderr


class Blocking:
    """A moderator that somebody else has written: it blocks its event loop."""

    def __init__(self, seconds: float, name: str = "blocking") -> None:
        self.name = name
        self.seconds = seconds
        self.threads: set[str] = set()

    async def moderate(self, texts: Any, *, prompts: Any) -> Any:
        self.threads.add(threading.current_thread().name)
        time.sleep(self.seconds)
        return await ScriptedModerator().moderate(texts, prompts=prompts)


def test_a_moderator_that_blocks_keeps_to_its_time_limit(version: str) -> None:
    app = make_app(version, make_guard(gate=Blocking(3), gate_seconds=0.1), [SAFE])
    others: list[float] = []

    async def run() -> Any:
        async def tick() -> None:
            while True:
                others.append(time.monotonic())
                await asyncio.sleep(0.01)

        ticking = asyncio.ensure_future(tick())
        started = time.monotonic()
        reply = await app.generate_async(messages=USER)
        ticking.cancel()
        return reply["content"], time.monotonic() - started

    said, took = asyncio.run(run())
    assert said == FALLBACK
    assert took < 2.5
    assert max(b - a for a, b in pairwise(others)) < 1.5


def test_a_moderator_that_blocked_is_asked_again() -> None:
    gate = Blocking(0.6)
    app = make_app("1.0", make_guard(gate=gate, gate_seconds=0.1), [SAFE, SAFE])
    assert say(app)["content"] == FALLBACK
    gate.seconds = 0.0
    assert say(app)["content"] == SAFE


def test_a_foreign_moderator_always_has_the_same_thread_until_it_goes() -> None:
    gate = Blocking(0.0, "thread")
    guard = make_guard(gate=gate)
    for _ in range(3):
        assert asyncio.run(guard.review("q", SAFE)).action == "pass"
    assert gate.threads == {"ttsa-thread"}
    del gate, guard
    gc.collect()
    end = time.monotonic() + 5
    while any(t.name == "ttsa-thread" for t in threading.enumerate()) and time.monotonic() < end:
        time.sleep(0.01)
    assert "ttsa-thread" not in {t.name for t in threading.enumerate()}


class Slow(ScriptedBackend):
    async def generate(self, requests: Any) -> Any:
        await asyncio.sleep(60)


def test_the_plain_answer_has_a_time_limit() -> None:
    guard = make_guard(Slow([]), answer_seconds=0.05)
    with pytest.raises(ModelError, match=r"within 0\.05 seconds\n.*answer_seconds"):
        asyncio.run(guard.respond("q"))
    with pytest.raises(Exception, match="within 0"):
        say(passthrough_app(guard))

    async def read() -> str:
        return "".join(
            [piece async for piece in passthrough_app(guard).stream_async(messages=USER)]
        )

    assert "generation_failed" in asyncio.run(read())


@pytest.mark.usefixtures("tracing")
def test_work_that_ends_in_another_context_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """As a request does that was given up, and that the garbage collector ends."""

    async def work() -> None:
        with span("ttsa_guard.review"):
            await asyncio.Future()

    async def run() -> None:
        left = work()
        Context().run(lambda: left.send(None))
        Context().run(left.close)

    asyncio.run(run())
    assert caplog.records == []
