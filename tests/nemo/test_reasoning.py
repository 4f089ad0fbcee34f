"""Models that reason, in a running app: the user reads answers, and none of the reasoning, streamed
or not."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from nemoguardrails.testing import FakeLLMModel
from nemoguardrails.types import LLMResponse, ToolCall, ToolCallFunction

from tests.reasoning_models import TEMPLATES, reasoning_copy
from ttsa_guard.config import EMBEDDED, GuardConfig
from ttsa_guard.embedded.world import World
from ttsa_guard.guard import Guard
from ttsa_guard.hf.source import Source
from ttsa_guard.messages import Generation, GenerationRequest, Message, Prompt
from ttsa_guard.nemo import passthrough_app
from ttsa_guard.testing import ScriptedBackend

from .conftest import FALLBACK, FLAGGED, SAFE, STEERED, USER, make_app, make_guard, say

THOUGHT = "<think>\nA seekrit plan.\nIt has lines. It has sentences.\n</think>\n\n"


class Reasoning(ScriptedBackend):
    """Reasons where it may: at the chat's temperature. Candidates are drawn at temperature 1."""

    def __init__(self, answer: str, found: str = STEERED) -> None:
        super().__init__(lambda request: found if request.temperature == 1 else answer)

    async def render_reasoning(self, messages: Any) -> tuple[Prompt, str]:
        return await self.render(messages), "<think>\n"

    async def stream(self, request: GenerationRequest, on_text: Any) -> Generation:
        [answer] = await self.generate([request])
        for letter in answer.text:
            on_text(letter)
            await asyncio.sleep(0)
        return answer


def answered(text: str) -> str:
    """What the model writes after the opening."""
    return THOUGHT.removeprefix("<think>\n") + text


@pytest.mark.parametrize("mode", ["buffered", "progressive"])
@pytest.mark.parametrize(
    ("answer", "found", "reply"),
    [(SAFE, STEERED, SAFE), (FLAGGED, STEERED, STEERED), (FLAGGED, THOUGHT + SAFE, FALLBACK)],
    ids=["pass", "swap", "candidate reasons"],
)
def test_reasoning_is_read_by_nobody(mode: str, answer: str, found: str, reply: str) -> None:
    app = passthrough_app(make_guard(Reasoning(answered(answer), found), streaming=mode))

    async def read() -> list[str]:
        return [piece async for piece in app.stream_async(messages=USER)]

    assert say(app)["content"] == reply
    pieces = asyncio.run(read())
    assert "".join(pieces).strip() == reply
    assert "seekrit" not in str(app.explain())


def test_gated_sentences_are_streamed_while_the_answer_grows_and_no_reasoning_before() -> None:
    guard = make_guard(
        Reasoning(answered("One is fine. Two is fine. Then a bad one. And more.")),
        streaming="progressive",
    )
    app = passthrough_app(guard)

    async def read() -> list[str]:
        return [piece async for piece in app.stream_async(messages=USER)]

    assert "".join(asyncio.run(read())) == f"One is fine. Two is fine.{STEERED}"
    judged = [text for batch in guard.gate.calls for text in batch]  # type: ignore[attr-defined]
    assert all(text.startswith("One is fine.") for text in judged)


PLAN = "A bad seekrit plan for all that."
SEARCH = ToolCall("1", function=ToolCallFunction("search", {"q": "owls"}))


def thinking_app(version: str, answer: LLMResponse, found: str, **settings: Any) -> Any:
    app = make_app(version, make_guard([found], **settings), passthrough=True)
    app.update_llm(FakeLLMModel(llm_responses=[answer]))
    return app


@pytest.mark.parametrize(
    "answer",
    [LLMResponse(SAFE, reasoning=PLAN), LLMResponse(f"<think>{PLAN}</think>{SAFE}")],
    ids=["beside", "inline"],
)
@pytest.mark.parametrize(
    ("setting", "found", "reply"),
    [
        ("withhold", STEERED, SAFE),
        ("regenerate", STEERED, STEERED),
        ("regenerate", f"<think>A plan.</think>{SAFE}", FALLBACK),
    ],
    ids=["withhold", "regenerate", "the other one reasons"],
)
def test_a_harmless_answer_after_flagged_reasoning(
    version: str, answer: Any, setting: str, found: str, reply: str
) -> None:
    app = thinking_app(version, answer, found, reasoning=setting)
    assert say(app)["content"] == reply
    for record in (app.explain().model_dump_json(), str(app.events_history_cache)):
        assert "seekrit" not in record
        assert SAFE not in record or reply == SAFE


def test_a_harmless_answer_after_harmless_reasoning_is_let_out(version: str) -> None:
    app = thinking_app(
        version, LLMResponse(SAFE, reasoning="A fine plan."), STEERED, reasoning="regenerate"
    )
    assert say(app)["content"] == SAFE


@pytest.mark.parametrize(("setting", "reply"), [("withhold", None), ("regenerate", FALLBACK)])
def test_tool_calls_after_flagged_reasoning(setting: str, reply: str | None) -> None:
    app = thinking_app(
        "1.0", LLMResponse("", tool_calls=[SEARCH], reasoning=PLAN), STEERED, reasoning=setting
    )
    said = say(app)
    assert bool(said.get("tool_calls")) is (reply is None)
    assert reply is None or said["content"] == reply
    assert "seekrit" not in str(said)


@pytest.mark.slow
@pytest.mark.parametrize("style", TEMPLATES)
def test_flagged_answers_of_a_reasoning_model_are_mended(style: str, tmp_path: Path) -> None:
    folder = reasoning_copy(Path(Source.of(EMBEDDED).path), tmp_path / "chat", style)
    options = {"model": str(folder), "device": "cpu"}
    guard = Guard.from_config(
        GuardConfig.parse({"backend": {"use": "transformers", "options": options}})
    )

    async def run() -> list[Any]:
        cases = World.load().cases("unsafe", None, 4, seed=2)
        found = []
        for case in cases:
            messages = [Message(role, text) for role, text in case.messages]  # type: ignore[arg-type]
            flagged = (
                "Here is how. Do it at night and tell nobody, then take all the money and run."
            )
            found.append(await guard.review(messages, flagged))
        return found

    outcomes = asyncio.run(run())
    assert not any("think" in outcome.text for outcome in outcomes)
    swaps = [outcome for outcome in outcomes if outcome.action == "swap"]
    print(f"{style}: {len(swaps)} of {len(outcomes)} swapped")
    assert len(swaps) >= 3
