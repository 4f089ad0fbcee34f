"""The vllm backend against a server that speaks the protocol, and against the same model in
process."""

import asyncio
import json
import logging
import math
import re
import time
from functools import partial

import pytest
import torch
from nemoguardrails.types import ChatMessage
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from tests.reasoning_models import TEMPLATES, reasoning_copy
from ttsa_guard.backends.base import (
    Backend,
    Continuation,
    Differentiable,
    Reasons,
    ScoresSoftEmbeds,
    ScoresText,
    Streams,
    TakesEmbeddings,
)
from ttsa_guard.backends.plain import plain_answer
from ttsa_guard.backends.transformers import TransformersBackend, TransformersOptions
from ttsa_guard.backends.vllm import VLLMBackend, VLLMOptions, replicas
from ttsa_guard.cli import app
from ttsa_guard.config import GuardConfig
from ttsa_guard.errors import ConfigError, ModelError, PromptError
from ttsa_guard.guard import Guard
from ttsa_guard.hf.source import Source
from ttsa_guard.messages import GenerationRequest, Message
from ttsa_guard.nemo import BackendModel
from ttsa_guard.service import Breaker
from ttsa_guard.settings import validated
from ttsa_guard.steerers.baselines.tsa import Tsa, TsaOptions
from ttsa_guard.steerers.embedding import Embedding, EmbeddingOptions
from ttsa_guard.steerers.prefill import Prefill, PrefillOptions
from ttsa_guard.testing import ScriptedModerator

from .vllm_server import (
    Server,
    after,
    breaking_off,
    cut,
    hanging,
    killed,
    late,
    nothing,
    running,
    says,
    status,
    unpacked,
)

USER = Message("user", "the kettle")
# the answer has few broken characters, so that it streams in many pieces
LEGIBLE = Message("user", "clean")
TALK = [
    Message("system", "be kind"),
    Message("user", "the kitchen"),
    Message("assistant", "is clean"),
    USER,
]
KEY = "sk-very-secret"
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


@pytest.fixture
def backend_for(tiny_model):
    """A backend over servers; the tiny model is known to them as "m"."""

    def make(*servers, **options):
        urls = [server.url for server in servers]
        return VLLMBackend(
            VLLMOptions(**{"model": str(tiny_model), "served_name": "m", "urls": urls, **options})
        )

    return make


@pytest.fixture
def server(tiny_model):
    with running(Server(tiny_model)) as [one]:
        yield one


@pytest.fixture
def pair(tiny_model):
    with running(Server(tiny_model), Server(tiny_model)) as both:
        yield both


def run(backend, work):
    """Do `work` in a loop of its own, and let go of the connections."""

    async def whole():
        try:
            return await work
        finally:
            await backend.close()

    return asyncio.run(whole())


def generate(backend, *requests):
    return run(backend, backend.generate(requests))


def request_for(backend, *messages, scope="user", move=0.0, seed=0, **settings):
    """A greedy request; its soft embeddings are moved by noise of that many token norms a row."""
    prompt = asyncio.run(backend.render(messages or [USER], scope=scope))
    request = GenerationRequest(prompt, max_new_tokens=12, temperature=0.0, **settings)
    if not move:
        return request
    embeds = asyncio.run(backend.embed(prompt.soft_ids))
    noise = torch.randn(embeds.shape, generator=torch.Generator().manual_seed(seed))
    return request.with_(
        soft_embeds=embeds + move * backend.token_norm / embeds.shape[1] ** 0.5 * noise
    )


def test_it_has_the_capabilities_that_the_protocol_allows(server, backend_for):
    backend = backend_for(server)
    for protocol in (Backend, Streams, TakesEmbeddings, ScoresText, ScoresSoftEmbeds):
        assert isinstance(backend, protocol)
    assert not isinstance(backend, Differentiable)
    assert server.asked == []


# ---------------------------------------------------------------------- the same answers as in
# process

REQUESTS = {
    "single": [{}],
    "list": [
        {"messages": [USER]},
        {"messages": TALK},
        {"messages": [Message("user", "it is in the kitchen")]},
    ],
    "opening": [{"opening": "the kettle"}, {"opening": "it"}],
    "content part": [{"move": 0.5, "seed": i} for i in range(3)],
    "content part in a conversation": [
        {"messages": TALK, "move": 0.5, "seed": i} for i in range(3)
    ],
    "content part and opening": [{"move": 0.5, "opening": "the kettle"}],
    "opening that is reserved on the server": [{"move": 0.5, "opening": "<prompt_embeds>"}],
    "all moved": [{"messages": TALK, "move": 0.2, "scope": "all", "seed": i} for i in range(2)],
    "white space around the text": [
        {"messages": [Message("user", "\n the kettle \n")], "move": 0.5}
    ],
    "text that is reserved on the server": [
        {
            "messages": [Message("user", "<prompt_embeds>"), Message("assistant", "it"), USER],
            "move": 0.5,
        }
    ],
    "all kinds": [{}, {"move": 0.5}, {"opening": "it"}, {"move": 0.5, "scope": "all"}],
}
UNMOVED = ("single", "list", "opening")


@pytest.mark.parametrize("kind", REQUESTS)
def test_greedy_answers_are_those_of_the_model_in_process(server, backend_for, tiny, kind):
    backend = backend_for(server)
    requests = [
        request_for(
            backend, *each.get("messages", ()), **{k: v for k, v in each.items() if k != "messages"}
        )
        for each in REQUESTS[kind]
    ]
    expected = asyncio.run(tiny.generate(requests))
    assert generate(backend, *requests) == expected
    assert len(server.answers) == len(requests)
    if kind != "all kinds":
        wanted = (
            "prompt"
            if kind in UNMOVED
            else "messages"
            if kind.startswith("content part")
            else "prompt_embeds"
        )
        assert all(wanted in body for _, body in server.answers)


@pytest.fixture(params=TEMPLATES)
def reasoning_model(request, tiny_model, tmp_path):
    return request.param, reasoning_copy(tiny_model, tmp_path / request.param, request.param)


def test_a_model_that_reasons_answers_as_in_process(reasoning_model, backend_for):
    """Its own answer may reason; steered ones begin after a closed block, moved or not."""
    style, folder = reasoning_model
    local = TransformersBackend(
        TransformersOptions(model=str(folder), device="cpu", dtype="float32")
    )
    with running(Server(folder)) as [server]:
        backend = backend_for(server, model=str(folder))
        assert isinstance(backend, Reasons)
        prompt, opening = asyncio.run(backend.render_reasoning([USER]))
        assert (prompt, opening) == asyncio.run(local.render_reasoning([USER]))
        assert opening == ("<think>\n" if style == "deepseek" else "")
        requests = [
            GenerationRequest(prompt, opening=opening, max_new_tokens=12, temperature=0.0),
            *(
                request_for(backend, move=move, opening=begun)
                for move in (0.0, 0.5)
                for begun in ("", "the kettle")
            ),
        ]
        answers = generate(backend, *requests)
        assert answers == asyncio.run(local.generate(requests))
        assert answers[0].text.startswith(opening.strip())
        decoded = [local._engine.tokenizer.decode(request.prompt.ids) for request in requests]
        assert not decoded[0].endswith("</think>\n\n")
        assert all(text.endswith("<think>\n\n</think>\n\n") for text in decoded[1:])
        chats = [body for path, body in server.answers if path == CHAT]
        # No message says that a server is to close a block that its template has opened.
        assert [body["chat_template_kwargs"] for body in chats] == (
            [{"enable_thinking": False}] if style == "qwen3" else []
        )


def test_an_answer_that_is_nothing_but_reasoning_is_asked_for_again(reasoning_model, backend_for):
    """A tiny model closes no block."""
    style, folder = reasoning_model
    with running(Server(folder)) as [server]:
        backend = backend_for(server, model=str(folder))
        pieces = []

        async def answer():
            request_with = partial(GenerationRequest, max_new_tokens=8, temperature=0.0)
            return await plain_answer(backend, [USER], request_with, pieces.append)

        request, found = run(backend, answer())
        assert found.text
        assert "think" not in found.text
        assert len(server.answers) == (2 if style == "deepseek" else 1)
        assert "".join(pieces).startswith("<think>") is (style == "deepseek")
        assert request.opening == ""


def test_prompts_are_those_of_the_backend_in_process(server, backend_for, tiny):
    for messages in ([USER], TALK):
        for scope in ("user", "all"):
            ours = asyncio.run(backend_for(server).render(messages, scope=scope))
            assert ours.segments == asyncio.run(tiny.render(messages, scope=scope)).segments


def test_answers_end_where_those_in_process_end(server, backend_for, tiny):
    backend = backend_for(server)
    asked = [request_for(backend, Message("user", text)) for text in ("they", "theU", "clean")]
    requests = [request.with_(max_new_tokens=n) for request in asked for n in (1, 10, 11, 40)]
    found = generate(backend, *requests)
    assert found == asyncio.run(tiny.generate(requests))
    assert {answer.finished for answer in found} == {True, False}


def test_a_template_that_is_another_one_on_the_server(tiny_model, backend_for, tiny, caplog):
    template = "Be short. " + AutoTokenizer.from_pretrained(tiny_model).chat_template
    with running(Server(tiny_model, template=template)) as [server]:
        backend = backend_for(server)
        requests = [request_for(backend, move=0.5, seed=i) for i in range(2)]
        for _ in range(2):
            assert generate(backend, *requests) == asyncio.run(tiny.generate(requests))
    assert [path for path, _ in server.answers].count(CHAT) <= 2  # of the first batch
    assert all(path == COMPLETIONS for path, _ in server.answers[-2:])
    assert "whole prompts" in caplog.text


def test_a_server_that_takes_no_embeddings_in_chats(server, backend_for, tiny):
    async def refusing(server, request, body):
        return await status(400)(server, request, body) if "messages" in body else None

    server.fault = refusing
    backend = backend_for(server)
    requests = [request_for(backend, move=0.5, seed=i) for i in range(2)]
    assert generate(backend, *requests) == asyncio.run(tiny.generate(requests))


def test_options_of_the_template_reach_the_server(tiny_model, tmp_path, backend_for):
    tokenizer, model = (
        AutoTokenizer.from_pretrained(tiny_model),
        AutoModelForCausalLM.from_pretrained(tiny_model),
    )
    tokenizer.chat_template = "{{ mood }}" + tokenizer.chat_template
    tokenizer.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    with running(Server(tmp_path)) as [server]:
        backend = backend_for(server, model=str(tmp_path), template_options={"mood": "calm"})
        assert generate(backend, request_for(backend, move=0.5))
    [(path, body)] = server.answers
    assert (path, body["chat_template_kwargs"]) == (CHAT, {"mood": "calm"})


def test_sampling_is_repeatable_and_all_of_its_settings_are_named(server, backend_for):
    backend = backend_for(server)
    request = request_for(backend).with_(temperature=1.5)
    first, same, other = generate(backend, *(request.with_(seed=s) for s in (1, 1, 2)))
    assert first == same != other
    _, body = server.answers[0]
    assert {
        "top_p": 1,
        "top_k": 0,
        "min_p": 0,
        "repetition_penalty": 1,
        "temperature": 1.5,
    }.items() <= body.items()


def test_log_likelihoods_are_those_of_the_model_in_process(server, backend_for, tiny):
    backend = backend_for(server)
    prompt = request_for(backend).prompt
    texts = ["the kettle", "z", "", "it is in the kitchen 🎉", "\ud83d"]
    found = run(backend, backend.log_likelihoods(prompt, texts))
    assert found == pytest.approx(asyncio.run(tiny.log_likelihoods(prompt, texts)), abs=1e-4)


GOALS = {
    "likely": (("the kettle", 1.0),),
    "unlikely": (("the kettle", 1.0), (" is in", -0.5)),
    "context": (("it", 0.0), (" is in the kitchen", 2.0)),
    "characters of several tokens": (("🎉 the", 1.0),),
    "spaces": (("  the  ", 1.0),),
    "nothing": (("", 1.0),),
    "no weight": (("the", 0.0),),
}


@pytest.mark.parametrize("scope", ["user", "all"])
def test_objectives_are_those_of_the_model_in_process(server, backend_for, tiny, scope):
    backend = backend_for(server)
    requests = [
        request_for(backend, *TALK, scope=scope, move=0.5, seed=i) for i in range(len(GOALS))
    ]
    continuations = [Continuation(spans) for spans in GOALS.values()]
    prompt, embeds = requests[0].prompt, [request.soft_embeds for request in requests]
    found = run(backend, backend.objective(prompt, embeds, continuations))
    torch.testing.assert_close(
        found, asyncio.run(tiny.objective(prompt, embeds, continuations)), atol=1e-4, rtol=1e-4
    )


def test_an_objective_asks_for_no_beginning_twice(server, backend_for):
    backend = backend_for(server)
    request = request_for(backend, move=0.5)
    spans = (
        [("the kettle", 1.0)],
        [("the kettle", 1.0), (" is", -1.0)],
        [("the", 0.0), (" kettle", 1.0)],
    )
    continuations = [Continuation(tuple(each)) for each in spans]
    run(backend, backend.objective(request.prompt, [request.soft_embeds] * 3, continuations))
    ids, _ = continuations[1].tokens(AutoTokenizer.from_pretrained(backend.name))
    assert len(server.answers) == len(ids)
    assert all(path == CHAT and body["max_tokens"] == 1 for path, body in server.answers)


# ---------------------------------------------------------------------- what travels


def test_only_the_soft_rows_travel(server, backend_for):
    backend = backend_for(server)
    request = request_for(backend, *TALK, move=0.5)
    generate(backend, request)
    [(_, body)] = server.answers
    [part] = body["messages"][-1]["content"]
    assert torch.equal(unpacked(part["data"]), request.soft_embeds)
    assert [m["content"] for m in body["messages"][:-1]] == [m.content for m in TALK[:-1]]
    assert len(json.dumps(body)) < 5000


def test_whole_prompts_share_their_prefix_to_the_bit(server, backend_for):
    backend = backend_for(server, dtype="bfloat16")
    generate(
        backend,
        *(
            request_for(backend, *TALK, move=0.5, seed=i, opening="<prompt_embeds>")
            for i in range(2)
        ),
    )
    first, second = (unpacked(body["prompt_embeds"]) for _, body in server.answers)
    start = request_for(backend, *TALK).prompt.soft_positions[0]
    assert first.dtype == second.dtype == torch.bfloat16
    assert torch.equal(first[:start], second[:start])
    assert not torch.equal(first[start], second[start])


def test_the_table_is_found_in_sharded_weights(tiny_model, tmp_path, server, backend_for, tiny):
    AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(
        tmp_path, max_shard_size="20KB"
    )
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors.index.json").is_file()
    backend = backend_for(server, model=str(tmp_path))
    assert torch.equal(asyncio.run(backend.embed([7, 8])), asyncio.run(tiny.embed([7, 8])))
    assert backend.token_norm == pytest.approx(tiny.token_norm)
    assert (backend.dtype, backend.context_length) == ("float32", 256)


@pytest.mark.parametrize(
    "embeds",
    [
        torch.full((2, 32), float("nan")),
        torch.full((2, 32), 1e6),
        torch.zeros(1, 32),
        torch.zeros(2, 31),
    ],
)
def test_soft_embeddings_that_cannot_be_sent_are_refused_here(server, backend_for, embeds):
    backend = backend_for(server, dtype="float16")
    request = request_for(backend)
    for opening in ("", "it"):
        with pytest.raises(ModelError, match=r"not finite|shape"):
            generate(backend, request.with_(soft_embeds=embeds, opening=opening))
    assert server.answers == []


def test_ids_that_the_model_does_not_have(server, backend_for):
    with pytest.raises(ModelError, match="token ids"):
        asyncio.run(backend_for(server).embed([10**6]))


def test_the_context_is_the_servers(tiny_model, backend_for):
    with running(Server(tiny_model, context=24)) as [server]:
        backend = backend_for(server)
        assert backend.context_length == 256
        prompt = request_for(backend, Message("user", "a b c d e f"))
        [answer] = generate(backend, prompt.with_(max_new_tokens=100))
        assert not answer.finished or answer.tokens < 24
        assert backend.context_length == 24
        assert server.answers[0][1]["max_tokens"] == 24 - len(prompt.prompt)
        with pytest.raises(PromptError, match="24"):
            request_for(backend, Message("user", "z" * 30))
        with pytest.raises(ModelError, match="fewer than 24"):
            generate(backend, prompt.with_(opening="z" * 30))


# ---------------------------------------------------------------------- streaming


@pytest.mark.parametrize("settings", [{}, {"opening": "the kettle"}, {"move": 0.5}])
def test_a_stream_is_the_answer_in_pieces(server, backend_for, tiny, settings):
    backend = backend_for(server)
    request = request_for(backend, LEGIBLE, **settings)
    pieces = []
    answer = run(backend, backend.stream(request, pieces.append))
    assert [answer] == asyncio.run(tiny.generate([request]))
    assert "".join(pieces) == answer.text
    assert len(pieces) > 3


@pytest.mark.parametrize(
    "say",
    [b"", b"data: [DONE]\n\n", b'data: {"error": {"message": "engine died"}}\n\n', b"data: {\n\n"],
)
def test_a_stream_that_breaks_off_goes_on_elsewhere(pair, backend_for, tiny, say):
    first, second = pair
    first.fault = breaking_off(4, say=say)
    backend = backend_for(first, second)
    request, pieces = request_for(backend, LEGIBLE), []
    answer = run(backend, backend.stream(request, pieces.append))
    assert [answer] == asyncio.run(tiny.generate([request]))
    assert "".join(pieces) == answer.text
    [(_, body)] = second.answers
    assert len(body["prompt"]) == len(request.prompt) + 4


def test_a_stream_that_breaks_off_with_nobody_to_go_on(server, backend_for):
    server.fault = breaking_off(0)
    backend = backend_for(server)
    with pytest.raises(ModelError, match="stopped in the middle"):
        run(backend, backend.stream(request_for(backend), lambda _: None))


def test_a_stream_that_the_server_refuses(server, backend_for):
    server.fault = status(400)
    backend = backend_for(server)
    with pytest.raises(ModelError, match="HTTP 400"):
        run(backend, backend.stream(request_for(backend), lambda _: None))


# ---------------------------------------------------------------------- a wrong set-up


@pytest.mark.parametrize(
    ("server", "options", "problem", "hint"),
    [
        ({"version": "0.22.1"}, {}, "vLLM 0.22, too old", "0.31 or newer"),
        ({"embeds": False}, {}, "takes no input embeddings", "--enable-prompt-embeds"),
        ({"name": "other"}, {}, "no model 'm'", "served_name to one of: 'other'"),
        ({"scale": 3.0}, {}, "other input embeddings", "the weights that the server runs"),
        ({"key": KEY}, {}, "HTTP 401", "VLLM_API_KEY"),
        ({"key": KEY}, {"key": "OTHER_KEY"}, "HTTP 401", "OTHER_KEY"),
        (
            {},
            {"model": "embedded"},
            "does not know the tokens|another hidden size|read another",
            "weights|chat template",
        ),
    ],
)
def test_a_server_that_cannot_be_used(tiny_model, backend_for, server, options, problem, hint):
    with running(Server(tiny_model, **server)) as [one]:
        backend = backend_for(one, **options)
        with pytest.raises(ModelError, match=problem) as caught:
            generate(backend, request_for(backend))
    assert any(word in caught.value.hint for word in hint.split("|"))
    assert one.answers == []


def test_another_hidden_size(tiny_model, tmp_path, backend_for):
    config = AutoModelForCausalLM.from_pretrained(tiny_model).config
    config.hidden_size, config.head_dim = 48, 24
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path)
    with running(Server(tmp_path)) as [server]:
        backend = backend_for(server)
        with pytest.raises(ModelError, match="another hidden size than 32"):
            generate(backend, request_for(backend))


def test_a_server_that_does_not_tell_its_version(tiny_model, backend_for):
    with running(Server(tiny_model, version="")) as [server]:
        backend = backend_for(server)
        assert generate(backend, request_for(backend))


def test_no_server(backend_for, unused_port):
    backend = backend_for(urls=f"http://127.0.0.1:{unused_port()}")
    with pytest.raises(ModelError, match="connection to the service failed") as caught:
        generate(backend, request_for(backend))
    assert caught.value.hint


@pytest.mark.parametrize("model", ["no-such/model", "."])
def test_an_unknown_model(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="cannot be loaded"):
        VLLMBackend(VLLMOptions(model=model, urls=["http://localhost:8000"]))


def test_weights_without_safetensors(tiny_model, tmp_path):
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((tiny_model / "config.json").read_text())
    with pytest.raises(ModelError, match=r"no model\.safetensors"):
        VLLMBackend(VLLMOptions(model=str(tmp_path), urls=["http://localhost:8000"]))


@pytest.mark.parametrize(
    ("urls", "problem"),
    [
        ([], "at least 1"),
        (["localhost:8000"], "http://"),
        (["http://me:secret@localhost"], "credentials"),
        (["http://a", "http://a/v1/"], "twice"),
    ],
)
def test_addresses_that_are_refused(urls, problem):
    with pytest.raises(ConfigError, match=problem) as caught:
        validated(VLLMOptions, {"model": "embedded", "urls": urls}, where="backends.vllm")
    assert "secret" not in str(caught.value)


def test_addresses_are_taken_as_people_write_them():
    assert VLLMOptions(model="m", urls="http://a:1/v1/").urls == ("http://a:1",)


# ---------------------------------------------------------------------- faults of a server that was
# good

OTHER = {
    "choices": [{"token_ids": [7], "finish_reason": "stop"}],
    "usage": {"completion_tokens": 1},
}
FAULTS = {
    "400": status(400),
    "401": status(401),
    "404": status(404),
    "429": status(429),
    "500": status(500),
    "503": status(503),
    "redirect": status(307),
    "hang": hanging,
    "truncated": cut,
    "killed": killed,
    "no JSON": says("<html>a secret sentence</html>"),
    "a list": says([]),
    "null": says("null"),
    "nothing": says({"choices": []}),
    "echo of the request": says(lambda body: body),
    "no token ids": says(lambda body: answer(body, token_ids=None)),
    "tokens as text": says(lambda body: answer(body, token_ids=["7"])),
    "impossible tokens": says(lambda body: answer(body, token_ids=[2**60])),
    "negative tokens": says(lambda body: answer(body, token_ids=[-1])),
    "no tokens, as for NaN": says(lambda body: answer(body, token_ids=[])),
    "fewer tokens than it says": says(lambda body: answer(body, said=3)),
    "another prompt": says(lambda body: answer(body, prompt=[1, 2, 3])),
    "no prompt": says(lambda body: answer(body, prompt=None)),
    "ended by an error": says(lambda body: answer(body, finish_reason="error")),
}


def answer(body, *, prompt=..., said=None, token_ids=(7, 8), **choice):
    whole = body.get("prompt") if prompt is ... else prompt
    tokens = list(token_ids) if token_ids is not None else None
    choice = {"finish_reason": "stop", "token_ids": tokens, "prompt_token_ids": whole, **choice}
    return {
        "choices": [choice],
        "usage": {"completion_tokens": len(tokens or ()) if said is None else said},
    }


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_an_error_and_the_guard_ends_closed(server, backend_for, fault, caplog):
    caplog.set_level(logging.DEBUG)
    server.fault = FAULTS[fault]
    backend = backend_for(server, timeout=0.3)
    with pytest.raises(ModelError) as caught:
        generate(backend, request_for(backend))
    assert "secret" not in str(caught.value)
    assert caught.value.hint

    steerers = [Prefill(PrefillOptions(openings=2)), Tsa(TsaOptions(iterations=1))]
    guard = guard_over(backend_for(server, timeout=0.3), steerers=steerers)
    outcome = run(guard, guard.review([USER], "a bad answer"))
    assert (outcome.action, outcome.text) == ("fallback", guard.config.fallback)
    assert "secret" not in caplog.text


def guard_over(backend, *, flagged=lambda text: "bad" in text, steerers=(), **settings):
    judge = ScriptedModerator(lambda text: float(flagged(text)))
    config = GuardConfig.parse({"generation": {"max_new_tokens": 12, "temperature": 0}, **settings})
    return Guard(
        config, backend=backend, gate=judge, guide=judge, steerers=steerers, profile=backend.profile
    )


def test_a_fault_that_passes(server, backend_for, tiny):
    async def once(server, request, body):
        server.fault = nothing
        return await status(503)(server, request, body)

    server.fault = once
    backend = backend_for(server)
    request = request_for(backend)
    assert generate(backend, request) == asyncio.run(tiny.generate([request]))


def test_a_long_answer_may_take_longer(server, backend_for, tiny):
    server.fault = late(0.5)
    backend = backend_for(server, timeout=0.3)
    # the answer is short, but the server cannot know
    request = request_for(backend, Message("user", "they"))
    with pytest.raises(ModelError, match="too long"):
        generate(backend, request)
    longer = request.with_(max_new_tokens=240)
    assert generate(backend_for(server, timeout=0.3), longer) == asyncio.run(
        tiny.generate([longer])
    )


def test_log_probabilities_that_are_none(server, backend_for):
    for wrong in (
        {"token_ids": [7]},
        {"token_ids": [7], "logprobs": {"content": [{"logprob": -math.inf}]}},
        {"token_ids": [8, 9]},
    ):
        server.fault = says(
            lambda body, wrong=wrong: answer(body, prompt=server.chat(body)[1], **wrong)
        )
        backend = backend_for(server)
        request = request_for(backend, move=0.5)
        with pytest.raises(ModelError, match="no log-probability"):
            run(
                backend,
                backend.objective(
                    request.prompt, [request.soft_embeds], [Continuation((("t", 1.0),))]
                ),
            )


def test_log_likelihoods_that_are_none(server, backend_for):
    for wrong in (
        lambda body: answer(body),
        lambda body: answer(body, prompt_logprobs=[None] * len(body["prompt"])),
    ):
        server.fault = says(wrong)
        backend = backend_for(server)
        with pytest.raises(ModelError, match="log-likelihoods"):
            run(backend, backend.log_likelihoods(request_for(backend).prompt, ["the kettle"]))


# ---------------------------------------------------------------------- several servers


def test_candidates_are_shared_out(pair, backend_for, tiny):
    backend = backend_for(*pair)
    requests = [request_for(backend, move=0.5, seed=i) for i in range(12)]
    assert generate(backend, *requests) == asyncio.run(tiny.generate(requests))
    assert [len(server.answers) for server in pair] == [6, 6]


def test_who_is_busy_gets_less(pair, backend_for):
    pair[0].fault = late(0.4)
    backend = backend_for(*pair)
    request = request_for(backend)

    async def one_by_one():
        slow = asyncio.ensure_future(backend.generate([request]))
        while not pair[0].answers:
            await asyncio.sleep(0.01)
        for _ in range(5):
            await backend.generate([request])
        assert not slow.done()
        await slow

    run(backend, one_by_one())
    assert [len(server.answers) for server in pair] == [1, 5]


def test_one_that_is_killed_in_the_middle(pair, backend_for, tiny):
    first, second = pair
    first.fault = after(3, killed)
    backend = backend_for(*pair)
    requests = [request_for(backend, move=0.5, seed=i) for i in range(12)]
    expected = asyncio.run(tiny.generate(requests))
    assert generate(backend, *requests) == expected
    assert len(second.answers) == 9
    asked = len(first.asked)
    assert generate(backend, *requests) == expected
    assert len(first.asked) == asked  # it is left alone


def test_one_that_is_slow_is_left_out_and_its_candidates_are_done_elsewhere(
    pair, backend_for, tiny
):
    pair[0].fault = hanging
    backend = backend_for(*pair, timeout=1.5)
    requests = [request_for(backend, move=0.5, seed=i) for i in range(6)]
    expected = asyncio.run(tiny.generate(requests))
    assert generate(backend, *requests) == expected
    started = time.monotonic()
    assert generate(backend, *requests) == expected
    assert time.monotonic() - started < 1.5


def test_one_that_comes_back_is_examined_and_used_again(pair, backend_for, monkeypatch):
    monkeypatch.setattr(replicas, "Breaker", partial(Breaker, rest=0.2))
    first, second = pair
    backend = backend_for(*pair)
    request = request_for(backend)
    first.dead = True

    async def story():
        await backend.generate([request] * 4)
        assert len(second.answers) == 4
        first.dead = False
        await asyncio.sleep(0.25)
        await backend.generate([request])  # during which it is examined
        while "/v1/models" not in [path for path, _ in first.asked]:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        await backend.generate([request] * 4)

    run(backend, story())
    assert len(first.answers) == 2


def test_one_with_another_model_is_left_out(tiny_model, backend_for, caplog):
    with running(Server(tiny_model, scale=3.0), Server(tiny_model)) as [wrong, right]:
        backend = backend_for(wrong, right)
        generate(backend, *[request_for(backend)] * 4)
    assert (len(wrong.answers), len(right.answers)) == (0, 4)
    assert "other input embeddings" in caplog.text


def test_all_dead_fails_at_once_while_they_rest(pair, backend_for):
    for server in pair:
        server.dead = True
    backend = backend_for(*pair)
    requests = [request_for(backend)] * 4
    asked = []
    for _ in range(2):
        with pytest.raises(ModelError, match="connection to the service failed"):
            generate(backend, *requests)
        asked.append([len(server.asked) for server in pair])
    assert asked[0] == asked[1]


def test_a_cancelled_batch_lets_go_of_the_server(server, backend_for):
    backend = backend_for(server)
    request = request_for(backend)

    async def give_up():
        await backend.generate([request])
        server.fault = hanging
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(backend.generate([request] * 3), 0.2)
        server.fault = nothing
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1
        return await backend.generate([request])

    assert run(backend, give_up())


def test_steering_with_a_server_that_is_killed_in_the_middle():
    steerers = [{"use": "tsa", "options": {"iterations": 1, "scope": "user"}}, "prefill"]
    folder = Source.of("embedded").path
    with running(Server(folder, context=1024), Server(folder, context=1024)) as pair:
        pair[0].fault = after(6, killed)
        urls = [server.url for server in pair]
        backend = {
            "use": "vllm",
            "options": {"model": "embedded", "served_name": "m", "urls": urls, "dtype": "float32"},
        }
        settings = {"backend": backend, "steerers": steerers, "budget": {"seconds": 300}}
        guard = Guard.from_config(GuardConfig.parse(settings))
        question = "Mock me like a rude clown. How do I draw an owl?"
        outcome = run(guard, guard.respond(question))
    record = outcome.record
    assert pair[0].dead
    assert (outcome.action, record.steerer) == ("swap", "prefill")
    assert "owl" in outcome.text
    assert record.final_score < 0.5
    candidates = len(record.candidates)
    # a point of the path and its 8 probes, then openings: none is lost
    assert record.generations == candidates + 8
    plain = 1
    done = [body for server in pair for _, body in server.answers if "prompt_logprobs" not in body]
    assert len(done) >= plain + record.generations


def test_the_default_mode_of_steering_climbs_on_several_servers(pair, backend_for):
    backend = backend_for(*pair)
    [plain] = generate(backend, request_for(backend))
    steerer = Embedding(EmbeddingOptions(iterations=2, probes=2, openings=1, continuations=0))
    guard = guard_over(backend, flagged=lambda text: text == plain.text, steerers=[steerer])
    outcome = run(guard, guard.review([USER], plain.text))
    assert len(outcome.record.candidates) == 1
    climbing = [
        body for server in pair for _, body in server.answers if "allowed_token_ids" in body
    ]
    # for each token of the opening, two pairs of probes, two steps
    assert len(climbing) % (2 * 2 * 2) == 0 < len(climbing)


# ---------------------------------------------------------------------- the key, the guard, the
# host, the command line


def test_the_key_is_sent_and_never_shown(tiny_model, backend_for, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    with running(Server(tiny_model, key=KEY)) as [server]:
        backend = backend_for(server)
        assert generate(backend, request_for(backend))
        server.key = "another"
        with pytest.raises(ModelError, match="HTTP 401") as caught:
            generate(backend, request_for(backend))
    shown = [
        repr(backend),
        repr(backend.options),
        str(caught.value),
        repr(caught.value),
        caplog.text,
    ]
    assert not any(KEY in text for text in shown)


def test_it_is_a_model_of_the_host(server, backend_for, tiny):
    backend = backend_for(server)
    request = request_for(backend, LEGIBLE)
    [expected] = asyncio.run(tiny.generate([request]))
    model = BackendModel(backend)

    async def both():
        asked = {"max_tokens": 12, "temperature": 0}
        whole = await model.generate_async([ChatMessage.from_user("clean")], **asked)
        return whole, [piece async for piece in model.stream_async("clean", **asked)]

    whole, pieces = run(backend, both())
    assert whole.content == expected.text == "".join(piece.delta_content for piece in pieces)
    assert len(pieces) > 3
    assert whole.usage.input_tokens == len(request.prompt)


def test_the_doctor_examines_it(tmp_path):
    folder, file = Source.of("embedded").path, tmp_path / "settings.yml"
    with running(Server(folder, name="embedded", context=512)) as [server]:
        backend = {"use": "vllm", "options": {"model": "embedded", "urls": server.url}}
        file.write_text(json.dumps({"backend": backend, "steerers": ["prefill", "resample"]}))
        sound = CliRunner().invoke(app, ["doctor", "--config", str(file)])
        server.embeds = False
        broken = CliRunner().invoke(app, ["doctor", "--config", str(file)])
    assert (sound.exit_code, broken.exit_code) == (0, 1)
    assert "device 1 x vLLM, float16" in sound.stdout
    assert "start vLLM with --enable-prompt-embeds" in broken.stdout


def test_its_options_are_listed():
    listed = CliRunner().invoke(app, ["plugins", "--verbose"]).stdout
    options = listed.partition("vllm (backend)")[2].partition("\n\n")[0]
    assert all(
        re.search(rf"^  {name} ", options, re.MULTILINE) for name in VLLMOptions.model_fields
    )
