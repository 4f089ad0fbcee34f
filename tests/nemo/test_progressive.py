"""Streams that begin before the answer ends: what is shown was passed by the gate, and stays."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from nemoguardrails import LLMRails

from ttsa_guard.errors import ConfigError, ModelError
from ttsa_guard.messages import Generation, GenerationRequest
from ttsa_guard.nemo import BackendModel, install
from ttsa_guard.steerers.baselines.resample import Resample, ResampleOptions
from ttsa_guard.testing import ScriptedBackend, ScriptedModerator

from .conftest import COLANG, FALLBACK, USER, make_app, make_config, make_guard

FINE = "One is fine. Two is fine. Three is fine."
LATE = "One is fine. Two is fine. Three is a bad seekrit. Four is fine."
MENDED = "One is fine. Two is fine. And so it ends well."


class Growing(ScriptedBackend):
    """Streams its answers word by word; a flagged answer is continued with `rest`."""

    def __init__(
        self, answer: str, rest: str = " And so it ends well.", *, break_after: int | None = None
    ) -> None:
        super().__init__(lambda request: rest if request.opening else answer)
        self.answer, self.break_after = answer, break_after
        self.written: list[str] = []

    async def stream(
        self, request: GenerationRequest, on_text: Callable[[str], None]
    ) -> Generation:
        [whole] = await self.generate([request])
        for i, word in enumerate(whole.text.split(" ")):
            if i == self.break_after:
                raise ModelError("out of memory")
            self.written.append(word)
            on_text(f" {word}" if i else word)
            for _ in range(9):
                await asyncio.sleep(0)
        return whole


def progressive(version: str, backend: ScriptedBackend, **parts: Any) -> LLMRails:
    steerers = [Resample(ResampleOptions(n=2))]
    guard = make_guard(backend, **{"streaming": "progressive", "steerers": steerers, **parts})
    app = LLMRails(make_config(version), llm=BackendModel(backend))
    install(app, guard)
    return app


def streamed(app: LLMRails, **options: Any) -> str:
    async def run() -> str:
        return "".join([piece async for piece in app.stream_async(messages=USER, **options)])

    return asyncio.run(run())


def test_the_first_sentence_arrives_before_the_last_is_written(version: str) -> None:
    backend = Growing(FINE)
    app = progressive(version, backend)

    async def run() -> tuple[str, int, str]:
        stream = app.stream_async(messages=USER)
        first = await anext(stream)
        written = len(backend.written)
        return first, written, first + "".join([piece async for piece in stream])

    first, written, whole = asyncio.run(run())
    assert (first, whole) == ("One is fine.", FINE)
    assert written < len(FINE.split())


@pytest.mark.parametrize(
    ("answer", "rest", "reply"),
    [
        (FINE, "", FINE),
        ("All of it is fine.", "", "All of it is fine."),
        (LATE, " And so it ends well.", MENDED),
        (LATE, " But bad again.", f"One is fine. Two is fine.\n\n{FALLBACK}"),
        (f"<think>A bad. Plan. </think>{FINE}", "", FINE),
        ("<think>Bad. Bad. Bad.", "", ""),
    ],
    ids=["pass", "one sentence", "swap", "fallback", "reasoning", "reasoning without end"],
)
def test_every_end(
    version: str, answer: str, rest: str, reply: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "ttsa_guard"):
        assert streamed(progressive(version, Growing(answer, rest))) == reply
    assert "seekrit" not in caplog.text


def test_unflagged_sentences_cost_gate_calls_but_no_generation() -> None:
    backend, gate = Growing(FINE), ScriptedModerator(name="gate")
    assert streamed(progressive("1.0", backend, gate=gate)) == FINE
    assert gate.calls == [["One is fine."], ["One is fine. Two is fine."], [FINE]]
    assert len(backend.calls) == 1


def test_a_beginning_that_is_flagged_shows_nothing_of_it(version: str) -> None:
    backend = ScriptedBackend(["So bad. Then fine. Then more.", *["A good answer it is."] * 2])
    assert streamed(progressive(version, backend)) == "A good answer it is."


@pytest.mark.parametrize("settings", [{}, {"passthrough": True}])
def test_the_next_turn_knows_what_the_user_read(settings: dict[str, Any]) -> None:
    backend = Growing(LATE)
    app = LLMRails(make_config("1.0", **settings), llm=BackendModel(backend))
    install(
        app, make_guard(backend, streaming="progressive", steerers=[Resample(ResampleOptions(n=2))])
    )
    asked: list[Any] = []
    guard = app.runtime.registered_action_params["ttsa_guard"]
    review = guard.review

    async def spy(messages: Any, answer: str, **more: Any) -> Any:
        asked.append([m.content for m in messages])
        return await review(messages, answer, **more)

    guard.review = spy
    assert streamed(app) == MENDED
    turns = [
        *USER,
        {"role": "assistant", "content": MENDED},
        {"role": "user", "content": "And then?"},
    ]
    asyncio.run(app.generate_async(messages=turns))
    assert asked[1] == [t["content"] for t in turns]


def test_a_model_that_fails_midway_ends_the_stream_with_an_error(version: str) -> None:
    reply = streamed(progressive(version, Growing(LATE, break_after=5)))
    assert reply.startswith("One is fine.")
    assert "seekrit" not in reply
    assert '"type": "generation_error"' in reply or version == "2.x"


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_gate_that_fails_on_the_way(version: str, after: int) -> None:
    class Tiring(ScriptedModerator):
        async def moderate(self, texts: Any, *, prompts: Any) -> Any:
            if len(self.calls) >= after:
                raise RuntimeError("down")
            return await super().moderate(texts, prompts=prompts)

    shown = ["", "One is fine.", "One is fine. Two is fine."][after]
    reply = streamed(progressive(version, Growing(FINE), gate=Tiring()))
    assert reply == (f"{shown}\n\n{FALLBACK}" if shown else FALLBACK)


def test_a_stream_that_is_closed_early_ends_the_generation() -> None:
    backend = Growing(FINE)
    # 2.x runs actions as tasks of its own, which end by themselves
    app = progressive("1.0", backend)

    async def run() -> int:
        stream = app.stream_async(messages=USER)
        await anext(stream)
        await stream.aclose()
        await asyncio.sleep(0.05)
        return len(backend.written)

    assert asyncio.run(run()) < len(FINE.split())


def test_streams_at_once_do_not_mix(version: str) -> None:
    class Echo(Growing):
        async def generate(self, requests: Any) -> Any:
            self.calls.append(list(requests))
            words = requests[0].prompt.soft_ids
            return [
                Generation(
                    f"{len(words)} is one. {len(words)} is two. Now bad." + r.opening, 5, True
                )
                for r in requests
            ]

    app = progressive(version, Echo(""), steerers=[])

    async def one(n: int) -> str:
        pieces = [
            p async for p in app.stream_async(messages=[{"role": "user", "content": "word " * n}])
        ]
        return "".join(pieces)

    async def run() -> list[str]:
        return list(await asyncio.gather(*(one(n) for n in range(1, 9))))

    replies = asyncio.run(run())
    counted = [int(reply.split()[0]) for reply in replies]
    assert counted == sorted(set(counted))
    assert replies == [f"{n} is one. {n} is two.\n\n{FALLBACK}" for n in counted]


@pytest.mark.parametrize(
    ("version", "settings"),
    [
        ("1.0", {"rails": {"output": {"flows": ["self check output"]}}}),
        (
            "2.x",
            {
                "colang": (
                    COLANG["2.x"] + "  check something else\n\nflow check something else\n  pass\n"
                )
            },
        ),
    ],
)
def test_other_output_rails_are_refused(version: str, settings: dict[str, Any]) -> None:
    prompts = [{"task": "self_check_output", "content": "Is {{ bot_response }} fine?"}]
    app = LLMRails(
        make_config(version, prompts=prompts, **settings), llm=BackendModel(Growing(FINE))
    )
    with pytest.raises(ConfigError, match="shows sentences before the rail"):
        install(app, make_guard(Growing(FINE), streaming="progressive"))


def test_a_comment_is_no_other_rail() -> None:
    flow = COLANG["2.x"].replace("\n  ttsa", '\n  """Ours."""\n  # alone\n  ttsa')
    app = LLMRails(make_config("2.x", flow), llm=BackendModel(Growing(FINE)))
    install(app, make_guard(Growing(FINE), streaming="progressive"))
    assert streamed(app) == FINE


def test_without_streaming_nothing_changes(version: str) -> None:
    app = make_app(version, make_guard([MENDED], streaming="progressive"), [LATE])
    assert asyncio.run(app.generate_async(messages=USER))["content"] == MENDED
