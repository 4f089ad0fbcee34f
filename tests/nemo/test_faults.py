"""Every part made to fail inside a running LLMRails: the user reads the fallback, and no log quotes
the flagged text."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from nemoguardrails import LLMRails
from nemoguardrails.actions.rail_outcome import RailOutcome
from nemoguardrails.exceptions import LLMCallException
from nemoguardrails.testing import FakeLLMModel

from ttsa_guard.errors import ModelError
from ttsa_guard.guard import Guard
from ttsa_guard.nemo import install
from ttsa_guard.plugins import Plugins, hookimpl
from ttsa_guard.steerers.base import Candidate
from ttsa_guard.testing import ScriptedBackend, ScriptedModerator

from .conftest import FALLBACK, FLAGGED, SAFE, STEERED, USER, make_app, make_guard, say

BOOM = RuntimeError(f"cannot handle {FLAGGED!r}")
SCORES = {
    "none": None,
    "text": "high",
    "nan": float("nan"),
    "above 1": 1.7,
    "negative": -0.1,
    "true": True,
}
ANSWERS: dict[str, Any] = {
    "none": None,
    "empty": [],
    "of nones": [None],
    "two": [0.0, 0.0],
    "tuple": (0.0,),
    "text": "pass",
}


class Second(ScriptedModerator):
    """A gate that breaks on what comes after the first answer."""

    async def moderate(self, texts: Any, *, prompts: Any) -> Any:
        if self.calls:
            raise BOOM
        return await super().moderate(texts, prompts=prompts)


class Likely(ScriptedBackend):
    """A backend that scores texts, wrongly."""

    def __init__(self, given: Any) -> None:
        super().__init__([STEERED])
        self.given = given

    async def log_likelihoods(self, prompt: Any, texts: Any) -> Any:
        if isinstance(self.given, Exception):
            raise self.given
        return self.given

    async def objective(self, prompt: Any, soft_embeds: Any, continuations: Any) -> Any:
        raise BOOM


class Unrendered(ScriptedBackend):
    async def render(self, messages: Any, *, scope: Any = "user") -> Any:
        raise BOOM


class Steering:
    """A steerer that does what `act` does."""

    name = "broken"
    needs = ()

    def __init__(self, act: Callable[[Any], Any]) -> None:
        self.act = act

    async def steer(self, task: Any) -> Any:
        yield await self.act(task)


async def _raise(*_: Any) -> Any:
    raise BOOM


async def _hang(*_: Any) -> Any:
    await asyncio.sleep(60)


async def _own_verdict(task: Any) -> Any:
    [verdict] = await task.score([SAFE])
    return [Candidate(FLAGGED, "forged", verdict)]


def _gives(value: Any) -> Callable[[Any], Any]:
    async def act(*_: Any) -> Any:
        return value

    return act


def _moderators() -> dict[str, Callable[[], ScriptedModerator]]:
    made: dict[str, Callable[[], ScriptedModerator]] = {
        "raises": lambda: ScriptedModerator(error=BOOM),
        "llm error": lambda: ScriptedModerator(error=LLMCallException(BOOM)),
        "cancelled": lambda: ScriptedModerator(error=asyncio.CancelledError()),
        "hangs": lambda: ScriptedModerator(delay=60),
    }
    made |= {
        f"score {name}": lambda s=score: ScriptedModerator(lambda _: s)
        for name, score in SCORES.items()
    }
    return made | {
        f"gives {name}": lambda a=answer: ScriptedModerator(instead=a)
        for name, answer in ANSWERS.items()
    }


def _review(act: Callable[..., Any]) -> Guard:
    guard = make_guard()
    guard.review = act  # type: ignore[method-assign]
    return guard


def _steers(act: Callable[[Any], Any]) -> Guard:
    return make_guard(steerers=[Steering(act)], budget={"seconds": 0.2})


FALLS_BACK: dict[str, Callable[[], Guard]] = {
    **{
        f"gate {name}": lambda m=make: make_guard(gate=m(), gate_seconds=0.05)
        for name, make in _moderators().items()
    },
    **{
        f"guide {name}": lambda m=make: make_guard(guide=m(), budget={"seconds": 0.2})
        for name, make in _moderators().items()
    },
    "gate breaks later": lambda: make_guard(gate=Second()),
    "backend raises": lambda: make_guard(ScriptedBackend([], error=BOOM)),
    "backend is out of memory": lambda: make_guard(ScriptedBackend([], error=MemoryError(FLAGGED))),
    "backend cannot render": lambda: make_guard(Unrendered([])),
    "backend has no answer": lambda: make_guard([]),
    "backend answers badly": lambda: make_guard([FLAGGED]),
    "steerer raises": lambda: _steers(_raise),
    "steerer hangs": lambda: _steers(_hang),
    "steerer gives nothing": lambda: _steers(_gives([])),
    "steerer gives none": lambda: _steers(_gives(None)),
    "steerer gives texts": lambda: _steers(_gives([SAFE])),
    "steerer forges": lambda: _steers(_own_verdict),
    "likelihoods raise": lambda: make_guard(Likely(BOOM)),
    "likelihoods are none": lambda: make_guard(Likely(None)),
    "likelihoods are too few": lambda: make_guard(Likely([])),
    "likelihoods are texts": lambda: make_guard(Likely(["high"])),
    "likelihoods are nan": lambda: make_guard(Likely([float("nan")])),
    "review raises": lambda: _review(_raise),
    "review gives none": lambda: _review(_gives(None)),
}


class Panic(BaseException):
    """As native libraries raise it."""


class Observer:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    @hookimpl
    def ttsa_guard_finished(self, record: Any) -> None:
        raise self.error


class Sink:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def write(self, record: Any) -> None:
        raise self.error


def _observed(error: BaseException) -> Guard:
    plugins = Plugins()
    plugins.add(Observer(error))
    return make_guard(plugins=plugins)


def _audited(error: BaseException) -> Guard:
    guard = make_guard()
    guard._sink = Sink(error)  # type: ignore[assignment]
    return guard


STILL_SWAPS: dict[str, Callable[[], Guard]] = {
    "observer raises": lambda: _observed(BOOM),
    "observer is cancelled": lambda: _observed(asyncio.CancelledError(FLAGGED)),
    "observer panics": lambda: _observed(Panic(FLAGGED)),
    "sink raises": lambda: _audited(BOOM),
    "sink is cancelled": lambda: _audited(asyncio.CancelledError(FLAGGED)),
    "sink panics": lambda: _audited(Panic(FLAGGED)),
    "disk is full": lambda: _audited(OSError(FLAGGED)),
}


@cache
def _app(version: str) -> LLMRails:
    return make_app(version, make_guard(), [])


@pytest.fixture
def app(version: str) -> LLMRails:
    app = _app(version)
    app.update_llm(FakeLLMModel(responses=[FLAGGED]))
    return app


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Nothing of ours quotes the flagged text, at any level, nor the host from WARNING on (below,
    it logs all answers)."""
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.WARNING, "nemoguardrails")
    caplog.set_level(logging.DEBUG, "ttsa_guard")
    yield
    logged = [caplog.handler.format(record) for record in caplog.get_records("call")]
    assert "seekrit" not in "\n".join(logged)
    assert "seekrit" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("name", FALLS_BACK)
def test_fault_gives_the_fallback(app: LLMRails, name: str) -> None:
    install(app, FALLS_BACK[name]())
    assert say(app) == {"role": "assistant", "content": FALLBACK}


@pytest.mark.parametrize("name", STILL_SWAPS)
def test_fault_after_the_review_keeps_the_swap(app: LLMRails, name: str) -> None:
    install(app, STILL_SWAPS[name]())
    assert say(app)["content"] == STEERED


def test_audit_file_that_cannot_be_written(app: LLMRails, tmp_path: Path) -> None:
    install(app, make_guard(audit={"path": tmp_path}))
    assert say(app)["content"] == STEERED


def test_next_turn_after_a_fault_is_reviewed(app: LLMRails) -> None:
    install(app, FALLS_BACK["review raises"]())
    assert say(app)["content"] == FALLBACK
    install(app, make_guard())
    app.update_llm(FakeLLMModel(responses=[FLAGGED]))
    assert say(app)["content"] == STEERED


def test_fault_with_reasoning(app: LLMRails) -> None:
    app.update_llm(FakeLLMModel(responses=[f"<think>{FLAGGED}</think>{FLAGGED}"]))
    install(app, FALLS_BACK["review raises"]())
    assert say(app)["content"] == FALLBACK


def test_fault_with_exceptions_on(version: str) -> None:
    app = make_app(version, FALLS_BACK["review raises"](), [FLAGGED], enable_rails_exceptions=True)
    reply = say(app)
    assert "OutputRailException" in str(reply)
    assert "seekrit" not in str(reply)


def test_cancelled_request_shows_nothing(app: LLMRails) -> None:
    install(app, make_guard(gate=ScriptedModerator(delay=60)))

    async def run() -> Any:
        return await asyncio.wait_for(app.generate_async(messages=USER), 0.2)

    with pytest.raises(asyncio.TimeoutError) as caught:
        asyncio.run(run())
    assert "seekrit" not in str(caught.value)


class Hanging(ScriptedBackend):
    """Never comes to an end with a candidate."""

    def __init__(self) -> None:
        super().__init__([])
        self.asked, self.left = asyncio.Event(), False

    async def generate(self, requests: Any) -> Any:
        self.asked.set()
        try:
            await asyncio.sleep(60)
        finally:
            self.left = True


def test_a_cancelled_request_ends_its_work_at_once(version: str) -> None:
    """The host leaves the actions of Colang 2.x running."""

    async def run() -> tuple[bool, set[Any]]:
        backend = Hanging()
        request = asyncio.ensure_future(
            make_app(version, make_guard(backend), [FLAGGED]).generate_async(messages=USER)
        )
        await asyncio.wait_for(backend.asked.wait(), 10)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        await asyncio.sleep(0.05)
        return backend.left, asyncio.all_tasks() - {asyncio.current_task()}

    assert asyncio.run(run()) == (True, set())


def test_model_that_fails(app: LLMRails) -> None:
    app.update_llm(FakeLLMModel(llm_exception=ModelError("out of memory")))
    install(app, make_guard())
    with pytest.raises(LLMCallException):
        say(app)


# ------------------------------------------------ the flow looks again: another action under our
# name


@pytest.mark.parametrize(
    "value", [None, RailOutcome.block(), RailOutcome.failure()], ids=["none", "block", "failure"]
)
def test_flow_refuses_what_is_not_a_pass(app: LLMRails, value: Any) -> None:
    async def ttsa_steer() -> Any:
        return value

    app.register_action(ttsa_steer, "ttsa_steer")
    assert say(app)["content"] == "I'm sorry, I can't respond to that."


@pytest.mark.parametrize("value", ["pass", True, 3], ids=str)
def test_flow_closes_on_nonsense(app: LLMRails, value: Any) -> None:
    async def ttsa_steer() -> Any:
        return value

    app.register_action(ttsa_steer, "ttsa_steer")
    try:
        reply = say(app)
    except Exception as error:
        reply = error
    assert "seekrit" not in str(reply)


def test_flow_closes_when_the_action_raises(app: LLMRails) -> None:
    async def ttsa_steer() -> Any:
        raise RuntimeError("unexpected")

    app.register_action(ttsa_steer, "ttsa_steer")
    assert say(app)["content"] in (
        "I'm sorry, an internal error has occurred.",
        "I'm sorry, I can't respond to that.",
    )
