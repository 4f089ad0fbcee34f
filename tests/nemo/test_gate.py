"""Checks of the host as the gate: the team's own policy decides, and what it blocks is mended."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from nemoguardrails import LLMRails
from nemoguardrails.actions import action
from nemoguardrails.actions.rail_outcome import RailOutcome, TransformTarget
from nemoguardrails.testing import FakeLLMModel

from ttsa_guard.errors import ConfigError
from ttsa_guard.guard import Guard
from ttsa_guard.nemo import install, rails_path
from ttsa_guard.nemo.gate import NemoRail, NemoRailOptions
from ttsa_guard.nemo.names import FLOW
from ttsa_guard.testing import ScriptedModerator

from .conftest import CHAT_V2, FALLBACK, FLAGGED, SAFE, STEERED, USER, make_config, make_guard, say

SELF_CHECK = {
    "prompts": [
        {
            "task": "self_check_output",
            "content": "Asked {{ user_input }}: is {{ bot_response }} bad?",
        }
    ]
}
REGEX = {"rails": {"config": {"regex_detection": {"output": {"patterns": ["seekrit"]}}}}}


def rail(flow: str) -> NemoRail:
    return NemoRail(NemoRailOptions(flow=flow))


def gated(
    version: str, llm: Any, flow: str, answers: Any = (STEERED,), **settings: Any
) -> LLMRails:
    """An app whose gate is the host's `flow`, with a guide that likes everything."""
    app = LLMRails(make_config(version, **settings), llm=FakeLLMModel(responses=llm))
    install(app, make_guard(answers, gate=rail(flow), guide=ScriptedModerator(lambda _: 0.0)))
    return app


@pytest.mark.parametrize(
    ("judged", "answers", "reply"),
    [
        (["no"], [], FLAGGED),
        (["yes", "no"], [STEERED], STEERED),
        (["yes", "yes"], [STEERED], FALLBACK),
    ],
    ids=["pass", "swap", "fallback"],
)
def test_a_judge_as_the_gate(
    version: str, judged: list[str], answers: list[str], reply: str
) -> None:
    app = gated(version, [FLAGGED, *judged], "self check output", answers, **SELF_CHECK)
    assert say(app)["content"] == reply
    assert app.llm.inference_count == 1 + len(judged)


def test_the_judge_sees_the_question_and_the_answer_or_candidate() -> None:
    seen: list[str] = []

    class Llm(FakeLLMModel):
        async def generate_async(self, prompt: Any, **kwargs: Any) -> Any:
            seen.append(str(prompt))
            return await super().generate_async(prompt, **kwargs)

    app = LLMRails(
        make_config("1.0", passthrough=True, **SELF_CHECK),
        llm=Llm(responses=[FLAGGED, "yes", "no"]),
    )
    install(app, make_guard(gate=rail("self check output"), guide=ScriptedModerator(lambda _: 0.0)))
    assert say(app)["content"] == STEERED
    for text, prompt in zip([FLAGGED, STEERED], seen[1:], strict=True):
        assert f"Asked {USER[0]['content']}: is {text} bad?" in prompt


@pytest.mark.parametrize(("answer", "reply"), [(SAFE, SAFE), (FLAGGED, STEERED)])
def test_a_pattern_as_the_gate(version: str, answer: str, reply: str) -> None:
    assert say(gated(version, [answer], "regex check output", **REGEX))["content"] == reply


def test_calls_of_the_judge_are_in_the_log_without_the_texts() -> None:
    app = gated("1.0", [FLAGGED, "yes", "no"], "self check output", **SELF_CHECK)
    response = say(app, options={"log": {"llm_calls": True, "activated_rails": True}})
    assert [(c.task, c.prompt) for c in response.log.llm_calls[1:]] == [
        ("self_check_output", "[withheld]")
    ] * 2
    assert "seekrit" not in response.model_dump_json()


def test_a_stream_is_not_mixed_with_the_judges_words(version: str) -> None:
    app = gated(version, [FLAGGED, "yes", "no"], "self check output", **SELF_CHECK)

    async def run() -> str:
        return "".join([piece async for piece in app.stream_async(messages=USER)])

    assert asyncio.run(run()) == STEERED


@pytest.mark.parametrize(
    "does",
    ["raises", "hangs", None, True, RailOutcome.failure()],
    ids=["raises", "hangs", "none", "true", "failure"],
)
def test_a_check_that_fails_ends_closed(
    version: str, does: Any, caplog: pytest.LogCaptureFixture
) -> None:
    @action(name="self_check_output")
    async def broken(bot_message: str = "", **_: Any) -> Any:
        if does == "raises":
            raise RuntimeError(f"cannot handle {bot_message}")
        await asyncio.sleep(60 if does == "hangs" else 0)
        return does

    app = LLMRails(make_config(version, **SELF_CHECK), llm=FakeLLMModel(responses=[FLAGGED]))
    install(app, make_guard(gate=rail("self check output"), gate_seconds=0.1))
    app.register_action(broken, "self_check_output")
    with caplog.at_level(logging.DEBUG):
        assert say(app)["content"] == FALLBACK
    assert "seekrit" not in caplog.text


def test_what_the_check_would_rewrite_is_flagged() -> None:
    @action(name="detect_regex_pattern")
    async def masks(text: str = "", **_: Any) -> RailOutcome:
        hidden = RailOutcome.transform([(TransformTarget.BOT_MESSAGE, "***")])
        return hidden if "seekrit" in text else RailOutcome.allow()

    app = gated("1.0", [FLAGGED], "regex check output", **REGEX)
    app.register_action(masks, "detect_regex_pattern")
    assert say(app)["content"] == STEERED


@pytest.mark.parametrize(
    ("flow", "match"),
    [
        ("self chek output", "did you mean 'self check output'"),
        ("content safety check output", r"\$model"),
        ("self check output $colour=red", r"\$colour"),
        ("self check output $variant", "is no flow of the host"),
        ("self check facts", "relevant_chunks"),
    ],
)
def test_flows_that_are_refused(flow: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        rail(flow)


@pytest.mark.parametrize(
    ("flow", "match"),
    [
        ("self check output", "self_check_output"),
        ("content safety check output $model=guard", "guard"),
    ],
)
def test_what_the_rail_lacks_is_said_at_start_up(version: str, flow: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        gated(version, [], flow)


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_the_same_check_before_our_rail_is_refused(version: str, first: str) -> None:
    flows = [FLOW, "self check output"] if first == "ours" else ["self check output", FLOW]
    lines = "\n  ".join(flows)
    colang = (
        f"import nemoguardrails.library.self_check.output_check\n{CHAT_V2}\nflow output rails"
        f" $output_text\n  {lines}\n"
        if version == "2.x"
        else ""
    )
    rails = (
        {}
        if version == "2.x"
        else {"rails": {"output": {"flows": flows}}, "import_paths": [rails_path()]}
    )
    guard = make_guard(gate=rail("self check output"))
    app = LLMRails(
        make_config(version, colang, **SELF_CHECK, **rails),
        llm=FakeLLMModel(responses=[FLAGGED, "yes", "no", "no"]),
    )
    if first == "ours":
        install(app, guard)
        assert say(app)["content"] == STEERED
    else:
        with pytest.raises(ConfigError, match="blocks an answer before the gate"):
            install(app, guard)


def test_outside_an_app_it_fails_closed() -> None:
    guard = make_guard(gate=rail("self check output"))
    outcome = asyncio.run(guard.review("q", SAFE))
    assert (outcome.action, outcome.record.reason) == ("fallback", "gate failed: ModeratorError")


def test_it_is_a_plugin() -> None:
    from ttsa_guard.config import GuardConfig
    from ttsa_guard.testing import ScriptedBackend

    gate = {"use": "nemo_rail", "options": {"flow": "self check output"}}
    guard = Guard.from_config(
        GuardConfig.parse({"gate": gate, "steerers": ["resample"]}), backend=ScriptedBackend([])
    )
    assert isinstance(guard.gate, NemoRail)


def test_as_a_guide_it_warns(caplog: pytest.LogCaptureFixture) -> None:
    make_guard(guide=rail("self check output"))
    assert "keep it as the gate" in caplog.text
