"""The backend `chat_completions`, against a local server that speaks the protocol."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys

import pytest
from aiohttp import web

from tests.moderators import services
from ttsa_guard.backends.base import Backend, TextOnly
from ttsa_guard.backends.chat_completions import (
    CONTINUE,
    ChatCompletionsBackend,
    ChatCompletionsOptions,
)
from ttsa_guard.config import GuardConfig, Use
from ttsa_guard.errors import ConfigError, ModelError
from ttsa_guard.guard import Guard
from ttsa_guard.messages import Message
from ttsa_guard.moderators import minilm
from ttsa_guard.plugins import Plugins
from ttsa_guard.steerers.ask_again import AskAgain, AskAgainOptions
from ttsa_guard.steerers.baselines.rewrite import INSTRUCTION
from ttsa_guard.steerers.baselines.self_reminder import AFTER
from ttsa_guard.testing import ScriptedModerator, scripted_guard

USER = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How is it done?"}]
FLAGGED = "a bad answer that seekrit made"
GOOD = "Here is a fine answer."


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", services.KEY)


def completion(text=GOOD, finish="stop", **message):
    return {
        "choices": [
            {"message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}
        ],
        "usage": {"completion_tokens": 5},
    }


def answering(*answers):
    """A service that gives these answers in turn, and the last one from then on."""
    service = services.Service(None)
    service.answer = lambda _: answers[min(len(service.asked), len(answers)) - 1]
    return service


def backend_at(service, **options):
    return ChatCompletionsBackend(
        ChatCompletionsOptions(
            model="remote", url=f"{service.url}/v1", **{"key": "OPENAI_API_KEY", **options}
        )
    )


def used(service, work, **options):
    """The result of `work` with a backend that asks `service`."""

    async def main():
        async with services.running(service):
            backend = backend_at(service, **options)
            try:
                return await work(backend)
            finally:
                await backend.close()

    return asyncio.run(main())


def generated(service, n=1, reasoned=False, options=None, **changes):
    async def work(backend):
        messages = Message.conversation(USER)
        guard = scripted_guard(steerers=[])
        guard.backend = backend
        request = await guard.plain_request(messages)
        if reasoned:
            request = request.with_(prompt=(await backend.render_reasoning(messages))[0])
        return await backend.generate([request.with_(seed=i, **changes) for i in range(n)])

    return used(service, work, **(options or {}))


def test_it_is_a_backend_that_text_only():
    backend = ChatCompletionsBackend(ChatCompletionsOptions(model="m", url="http://127.0.0.1:1"))
    assert isinstance(backend, Backend)
    assert isinstance(backend, TextOnly)
    assert backend.options.url == "http://127.0.0.1:1/v1"


def test_a_request_says_what_is_wanted_and_an_answer_counts_its_tokens():
    service = answering(completion())
    [answer] = generated(service, max_new_tokens=40, temperature=0.7)
    assert (answer.text, answer.tokens, answer.finished) == (GOOD, 5, True)
    assert service.asked == [
        {"model": "remote", "messages": USER, "max_tokens": 40, "temperature": 0.7, "seed": 0}
    ]
    assert service.authorised == [True]


def test_no_key_is_sent_to_a_service_that_none_is_named_for():
    service = answering(completion())
    generated(service, options={"key": None})
    assert service.authorised == [False]


def test_parameters_are_sent_besides_ours_or_instead():
    service = answering(completion())
    generated(service, options={"parameters": {"temperature": 1, "reasoning_effort": "low"}})
    assert service.asked[0]["temperature"] == 1
    assert service.asked[0]["reasoning_effort"] == "low"


@pytest.mark.parametrize(
    ("body", "text", "finished"),
    [
        pytest.param(completion("Half an", "length"), "Half an", False, id="cut-off"),
        pytest.param(completion("so much", "content_filter"), "", True, id="filtered"),
        pytest.param(completion(None, refusal="Sorry, no."), "Sorry, no.", True, id="refusal"),
        pytest.param(completion(None), "", True, id="nothing"),
        pytest.param(
            completion([{"type": "thinking"}, {"type": "text", "text": "Yes."}]),
            "Yes.",
            True,
            id="parts",
        ),
        pytest.param(completion("<think>hm</think>Yes."), "Yes.", True, id="reasoning"),
        pytest.param(completion("Yes.", reasoning_content="hm"), "Yes.", True, id="apart"),
    ],
)
def test_what_an_answer_holds(body, text, finished):
    [answer] = generated(answering(body))
    assert (answer.text, answer.finished) == (text, finished)


@pytest.mark.parametrize(
    "body", [completion("<think>hm</think>Yes."), completion("Yes.", reasoning_content="hm")]
)
def test_reasoning_is_kept_where_it_is_to_be_judged(body):
    [answer] = generated(answering(body), reasoned=True)
    assert answer.text == "<think>hm</think>Yes."


def test_tokens_are_estimated_where_the_service_counts_none():
    [answer] = generated(answering({**completion("x" * 41), "usage": None}))
    assert answer.tokens == 11


@pytest.mark.parametrize("said", ["and two eyes.", "Draw a circle and two eyes."])
def test_an_answer_goes_on_after_its_opening(said):
    service = answering(completion(said))
    [answer] = generated(service, opening="Draw a circle")
    assert answer.text == "Draw a circle and two eyes."
    assert service.asked[0]["messages"][2:] == [
        {"role": "assistant", "content": "Draw a circle"},
        {"role": "user", "content": CONTINUE},
    ]


OPENAI = {"error": {"message": "m", "code": "unsupported_parameter", "param": "max_tokens"}}
MISTRAL = {"message": {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"]}]}}


def refusing(*said):
    """A service that answers these, with status 400, first."""
    waiting = [web.json_response(one, status=400) for one in said]
    return services.Service(lambda _: completion(), lambda *_: waiting.pop(0) if waiting else None)


def test_a_field_that_the_service_does_not_know_is_left_out_from_then_on():
    service = refusing(OPENAI, MISTRAL)

    async def twice(backend):
        guard = scripted_guard(steerers=[])
        guard.backend = backend
        request = await guard.plain_request(Message.conversation(USER))
        return [await backend.generate([request]) for _ in range(2)]

    assert [a.text for [a] in used(service, twice)] == [GOOD, GOOD]
    fields = [sorted(body.keys() - {"model", "messages"}) for body in service.asked]
    assert fields == [
        ["max_tokens", "seed", "temperature"],
        ["max_completion_tokens", "seed", "temperature"],
        ["max_completion_tokens", "temperature"],
        ["max_completion_tokens", "temperature"],
    ]


@pytest.mark.parametrize(
    ("before", "told"),
    [
        pytest.param(services.status(401), "OPENAI_API_KEY", id="key"),
        pytest.param(services.status(400), "model's name", id="refused"),
        pytest.param(services.status(500), "HTTP 500", id="failed"),
        pytest.param(services.text("bad words"), "not JSON", id="garbage"),
        pytest.param(services.text('{"choices": []}'), "no chat completion", id="empty"),
        pytest.param(services.text("[1]"), "no chat completion", id="list"),
        pytest.param(services.text('{"choices":[{"message":{"content":7}}]}'), "no", id="number"),
        pytest.param(services.slowly(5), "took too long", id="slow"),
    ],
)
def test_a_failure_is_told_without_texts_and_keys(before, told, caplog):
    service = services.Service(None, before)
    with caplog.at_level(logging.DEBUG), pytest.raises(ModelError) as raised:
        generated(service, options={"tries": 1, "timeout": 0.2})
    assert told in str(raised.value)
    assert not any(word in str(raised.value) + caplog.text for word in (services.KEY, "bad words"))


def test_one_failure_among_several_leaves_the_others():
    service = services.Service(
        lambda _: completion(), lambda n, _: web.Response(status=400) if n == 2 else None
    )
    assert sorted(a.text for a in generated(service, n=3)) == ["", GOOD, GOOD]


@pytest.mark.parametrize(
    "url", ["nowhere", "ftp://host", "http://user:pw@host", "http://host?key=1"]
)
def test_an_address_is_checked_and_not_quoted(url):
    options = {"model": "m", "url": url}
    with pytest.raises(ConfigError, match="url") as raised:
        Plugins().make("backends", Use(use="chat_completions", options=options))
    assert url not in str(raised.value)


@pytest.mark.parametrize(
    ("steerer", "told"), [("occlude", "'erase'"), ("embedding", "'ask_again'"), ("offer", "text")]
)
def test_steerers_that_need_more_than_texts_are_refused(steerer, told, monkeypatch):
    monkeypatch.setattr(minilm, "installed", lambda: False)
    backend = {"use": "chat_completions", "options": {"model": "m", "url": "http://h"}}
    config = GuardConfig.parse({"backend": backend, "steerers": [steerer], "gate": "lite"})
    with pytest.raises(ConfigError, match=f"steerer '{steerer}'") as raised:
        Guard.from_config(config)
    assert told in raised.value.hint


# ------------------------------------------------------------------ ask_again


def reviewed(service, options=None, **settings):
    """The outcome of a review of a flagged answer, which `ask_again` mends by `service`."""

    async def work(backend):
        guard = scripted_guard(
            steerers=[AskAgain(options or AskAgainOptions())], guide=guide, **settings
        )
        guard.backend = backend
        return await guard.review(USER, FLAGGED)

    guide = ScriptedModerator()
    return used(service, work, tries=1, timeout=0.5)


def by_way(**answers):
    """A service whose answer depends on the way in which it is asked; a number is a status."""

    def way(body):
        last = body["messages"][-1]["content"]
        return (
            "rewrite"
            if "last answer" in last
            else "self_reminder"
            if "Remember" in last
            else "resample"
        )

    return services.Service(
        lambda body: completion(answers[way(body)]),
        lambda _, body: (
            web.Response(status=found, text=FLAGGED)
            if isinstance(found := answers[way(body)], int)
            else None
        ),
    )


def test_ask_again_mends_through_the_model_itself():
    service = by_way(rewrite=GOOD)
    outcome = reviewed(service)
    assert (outcome.action, outcome.text, outcome.record.steerer) == ("swap", GOOD, "ask_again")
    assert (outcome.record.generations, outcome.record.tokens) == (2, 10)
    said = [m["content"] for m in service.asked[0]["messages"]]
    assert said[:3] == ["Be brief.", "How is it done?", FLAGGED]


@pytest.mark.parametrize("rewrite", [400, 500, "bad again"])
def test_a_way_that_fails_leaves_the_next(rewrite):
    outcome = reviewed(by_way(rewrite=rewrite, self_reminder=403, resample=GOOD))
    assert (outcome.action, outcome.text) == ("swap", GOOD)


@pytest.mark.parametrize("told", [INSTRUCTION, AFTER])
def test_an_answer_that_quotes_what_the_model_was_told_is_dropped(told):
    outcome = reviewed(by_way(rewrite=told, self_reminder=f"Yes. {told}", resample=GOOD))
    assert (outcome.action, outcome.text) == ("swap", GOOD)


@pytest.mark.parametrize("answer", [400, 500, "bad again", "", None])
def test_no_way_left_is_the_fallback(answer, caplog):
    with caplog.at_level(logging.DEBUG):
        outcome = reviewed(by_way(rewrite=answer, self_reminder=answer, resample=answer))
    assert outcome.action == "fallback"
    assert "seekrit" not in outcome.text + caplog.text
    assert services.KEY not in caplog.text


def test_ask_again_keeps_to_its_budget():
    service = by_way(rewrite="bad", self_reminder="bad", resample="bad")
    outcome = reviewed(service, AskAgainOptions(n=4), budget={"generations": 5, "tokens": 100})
    assert outcome.action == "fallback"
    assert len(service.asked) == 5
    assert [body["max_tokens"] for body in service.asked] == [25, 25, 25, 25, 80]


def test_ask_again_keeps_to_its_deadline():
    service = services.Service(None, services.slowly(5))
    outcome = reviewed(service, budget={"seconds": 0.2})
    assert (outcome.action, outcome.record.reason) == ("fallback", "budget used up")


def test_an_answer_is_generated_whole():
    service = by_way(rewrite=GOOD)
    reviewed(service, generation={"max_new_tokens": 300, "draft_tokens": 20})
    assert {body["max_tokens"] for body in service.asked} == {300}


def test_what_a_stream_has_shown_stays():
    async def work(backend):
        guard = scripted_guard(steerers=[AskAgain(AskAgainOptions(ways=["resample"]))])
        guard.backend = backend
        stream_gate = guard.stream_gate("How is it done?")

        async def pieces():
            for piece in ("Draw a circle. ", "It is a bad one. "):
                yield piece
                await asyncio.sleep(0.01)  # else both are judged together

        shown = "".join([piece async for piece in stream_gate.stream(pieces())])
        answer = "Draw a circle. It is a bad one."
        return shown, await guard.review(USER, answer, stream_gate=stream_gate)

    service = answering(completion("Then add two eyes."))
    shown, outcome = used(service, work)
    assert shown.strip() == "Draw a circle."
    assert (outcome.action, outcome.text) == ("swap", "Draw a circle. Then add two eyes.")
    assert [m["content"] for m in service.asked[0]["messages"][-2:]] == [shown, CONTINUE]


WITHOUT_TORCH = """
import asyncio, sys
for name in ("torch", "transformers"):
    sys.modules[name] = None
from ttsa_guard import Guard, GuardConfig
options = {"model": "remote", "url": "http://127.0.0.1:9"}
guard = Guard.from_config(GuardConfig.parse({
    "backend": {"use": "chat_completions", "options": options},
    "steerers": ["ask_again"], "gate": "lite", "guide": "lite"}))
outcome = asyncio.run(guard.review("How do I draw an owl?", "Look at a photo and draw its shapes."))
print(outcome.action)
"""


def test_neither_torch_nor_transformers_is_needed():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "pass\n", done.stderr
