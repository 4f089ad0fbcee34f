"""A backend as the host's chat model."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from nemoguardrails.types import ChatMessage, LLMModel, LLMResponse

from ttsa_guard.config import GenerationConfig
from ttsa_guard.errors import ModelError, PromptError
from ttsa_guard.messages import Generation, GenerationRequest, Message
from ttsa_guard.nemo import BackendModel
from ttsa_guard.testing import ScriptedBackend


class Backend(ScriptedBackend):
    """Keeps what it renders; cuts answers off at `max_new_tokens` words."""

    def __init__(self, answers: Any, **kwargs: Any) -> None:
        super().__init__(answers, **kwargs)
        self.rendered: list[list[Message]] = []

    async def render(self, messages: Any, **kwargs: Any) -> Any:
        self.rendered.append(list(messages))
        return await super().render(messages, **kwargs)

    async def generate(self, requests: Any) -> list[Generation]:
        answers = await super().generate(requests)
        limited = zip(answers, [r.max_new_tokens for r in requests], strict=True)
        return [
            Generation(" ".join(a.text.split()[:n]), min(a.tokens, n), a.tokens <= n)
            for a, n in limited
        ]


def ask(
    backend: ScriptedBackend, prompt: Any, *, model: dict[str, Any] | None = None, **parameters: Any
) -> LLMResponse:
    response = asyncio.run(
        BackendModel(backend, **(model or {})).generate_async(prompt, **parameters)
    )
    assert isinstance(response, LLMResponse)
    return response


def request(backend: ScriptedBackend) -> GenerationRequest:
    [[only]] = backend.calls
    return only


def test_is_a_model_of_the_host() -> None:
    model = BackendModel(ScriptedBackend([]), name="embedded")
    assert isinstance(model, LLMModel)
    assert (model.model_name, model.provider_name, model.provider_url) == (
        "embedded",
        "ttsa_guard",
        None,
    )
    assert BackendModel(ScriptedBackend([])).model_name == "scripted"


def test_text_becomes_one_user_message() -> None:
    backend = Backend(["hello there"])
    response = ask(backend, "say hello")
    assert backend.rendered == [[Message("user", "say hello")]]
    assert (response.content, response.finish_reason, response.model) == (
        "hello there",
        "stop",
        "scripted",
    )
    assert response.usage is not None
    assert (
        response.usage.input_tokens,
        response.usage.output_tokens,
        response.usage.total_tokens,
    ) == (4, 2, 6)


def test_roles_are_kept() -> None:
    backend = Backend(["c"])
    turns = [
        ChatMessage.from_system("s"),
        ChatMessage.from_user("a"),
        ChatMessage.from_assistant("b"),
    ]
    ask(backend, [*turns, {"role": "user", "content": [{"type": "text", "text": "d"}]}])
    assert backend.rendered == [
        [
            Message("system", "s"),
            Message("user", "a"),
            Message("assistant", "b"),
            Message("user", "d"),
        ]
    ]


def test_settings_hold_unless_the_call_names_others() -> None:
    model = {"generation": GenerationConfig(max_new_tokens=5, temperature=0.3), "seed": 4}
    backend = Backend(["a"])
    ask(backend, "q", model=model, temperature=None)
    assert (request(backend).max_new_tokens, request(backend).temperature) == (5, 0.3)
    backend = Backend(["a"])
    ask(backend, "q", model=model, max_tokens=9, temperature=0, seed=0)
    assert (
        request(backend).max_new_tokens,
        request(backend).temperature,
        request(backend).seed,
    ) == (9, 0, 0)


def test_the_seed_belongs_to_the_conversation() -> None:
    def seed(question: str, setting: int) -> int:
        backend = Backend(["a"])
        ask(backend, question, model={"seed": setting})
        return request(backend).seed

    assert seed("q", 4) == seed("q", 4)
    assert len({seed("q", 4), seed("q", 5), seed("r", 4)}) == 3


def test_answer_that_was_cut_off() -> None:
    assert ask(Backend(["one two three"]), "q", max_tokens=2).finish_reason == "length"


@pytest.mark.parametrize("stop", ["User:", ["Bot:", "User:"]])
def test_stops_before_the_first_stop_text(stop: Any) -> None:
    response = ask(Backend(["fine. User: more Bot: x"]), "q", stop=stop, max_tokens=4)
    assert (response.content, response.finish_reason) == ("fine. ", "stop")


def test_unknown_parameters_are_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "ttsa_guard"):
        ask(Backend(["a"]), "q", top_p=0.5)
    assert caplog.messages == ["the backend does not know these generation parameters: top_p"]


def test_stream_is_the_whole_answer() -> None:
    async def run() -> list[Any]:
        return [
            chunk
            async for chunk in BackendModel(Backend(["all of it"])).stream_async("q", stop=["it"])
        ]

    [chunk] = asyncio.run(run())
    assert (chunk.delta_content, chunk.finish_reason) == ("all of ", "stop")


class Streaming(Backend):
    """Streams letter by letter."""

    async def stream(self, request: GenerationRequest, on_text: Any) -> Generation:
        [answer] = await self.generate([request])
        for letter in answer.text:
            on_text(letter)
            await asyncio.sleep(0)
        return answer


@pytest.mark.parametrize("answer", ["fine. User: more Bot: x", "fine. Us", "fine.", "User:", ""])
@pytest.mark.parametrize("stop", [None, "User:", ["Bot:", "User:"]])
def test_a_stream_is_the_same_answer_in_pieces(answer: str, stop: Any) -> None:
    async def run() -> list[Any]:
        return [
            chunk async for chunk in BackendModel(Streaming([answer])).stream_async("q", stop=stop)
        ]

    chunks = asyncio.run(run())
    whole = ask(Backend([answer]), "q", stop=stop)
    assert "".join(c.delta_content for c in chunks) == whole.content
    assert (chunks[-1].finish_reason, chunks[-1].usage) == (whole.finish_reason, whole.usage)


def test_a_stream_that_breaks() -> None:
    class Breaking(Streaming):
        async def stream(self, request: GenerationRequest, on_text: Any) -> Generation:
            on_text("one ")
            raise ModelError("out of memory")

    async def run() -> list[Any]:
        return [chunk async for chunk in BackendModel(Breaking([])).stream_async("q")]

    with pytest.raises(ModelError):
        asyncio.run(run())


def test_errors_of_the_backend_come_through() -> None:
    with pytest.raises(ModelError):
        ask(ScriptedBackend([], error=ModelError("out of memory")), "q")
    with pytest.raises(PromptError):
        ask(ScriptedBackend([]), [{"role": "tool", "content": "x"}])
