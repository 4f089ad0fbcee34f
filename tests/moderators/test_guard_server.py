"""A guard model as a GGUF file and behind a server, against the same tiny model in process."""

import asyncio
import json
import math

import pytest
import torch
from aiohttp import web
from backends.vllm_server import RefusalError, Server, late, nothing, running, says, status
from transformers import AutoModelForCausalLM, AutoTokenizer

from ttsa_guard.errors import ConfigError, ModelError
from ttsa_guard.moderators.guard_llm import GuardLLM, GuardLLMOptions
from ttsa_guard.moderators.recipes import known
from ttsa_guard.settings import validated
from ttsa_guard.testing import check_moderator, scripted_guard

RECIPE = {"harmful": {"u": 1.0}, "harmless": ["s"]}
TWO_STEPS = {"before": [{"text": "q:", "values": ["k", "t"]}], "prefill": "a:", **RECIPE}
TEXTS = ["the kettle", "the other kettle is in the kitchen", "", "漢字 🙂 \ud800"]
PROMPTS = ["clean", "is it?", "and", "the kettle"]


def as_vllm(_, logits, top):
    """Tokens by their numbers."""
    values, tokens = logits.log_softmax(-1).topk(top)
    return {
        "top_logprobs": [
            {f"token_id:{t}": v for t, v in zip(tokens.tolist(), values.tolist(), strict=True)}
        ]
    }


def as_llama_cpp(tokenizer, logits, top):
    """As in chat completions, with numbers beside the texts."""
    values, tokens = logits.log_softmax(-1).topk(top)
    listed = [
        {"id": t, "token": tokenizer.decode([t]), "logprob": v}
        for t, v in zip(tokens.tolist(), values.tolist(), strict=True)
    ]
    return {"content": [{**listed[0], "top_logprobs": listed}]}


def as_text(tokenizer, logits, top):
    """As OpenAI documents it: texts alone."""
    values, tokens = logits.log_softmax(-1).topk(top)
    listed = {
        tokenizer.decode([t]): v
        for t, v in reversed([*zip(tokens.tolist(), values.tolist(), strict=True)])
    }
    first = tokenizer.decode([int(tokens[0])])
    return {"tokens": [first], "token_logprobs": [float(values[0])], "top_logprobs": [listed]}


class Completions(Server):
    """Answers completions with the log-probabilities of one token, in the form `told`."""

    told = staticmethod(as_vllm)

    async def answer(self, request, path, body):
        if path != "/v1/completions" or body["model"] != self.name:
            raise RefusalError(404, "not found")
        if other := await self.fault(self, request, body):
            return other
        assert (body["max_tokens"], body["temperature"]) == (1, 0)
        with torch.no_grad():
            logits = self.model(input_ids=torch.tensor([body["prompt"]])).logits[0, -1]
        return web.json_response(
            {
                "choices": [
                    {"text": "", "logprobs": self.told(self.tokenizer, logits, body["logprobs"])}
                ]
            }
        )


@pytest.fixture
def server(tiny_model):
    made = Completions(tiny_model, name="guard")
    with running(made):
        yield made


@pytest.fixture
def served(server, tiny_model):
    """A moderator that asks the server; options of its `server` besides."""

    def make(recipe=RECIPE, **options):
        asked = {"model": "guard", "top": 280, "tries": 1, "timeout": 5.0, **options}
        settings = {
            "model": str(tiny_model),
            "recipe": recipe,
            "base_url": f"{server.url}/v1/",
            "server": asked,
        }
        return GuardLLM(GuardLLMOptions(**settings))

    return make


def local(model, recipe=RECIPE, **options):
    return GuardLLM(
        GuardLLMOptions(model=str(model), recipe=recipe, device="cpu", dtype="float32", **options)
    )


def judged(moderator, texts=TEXTS, prompts=PROMPTS):
    async def main():
        verdicts = await moderator.moderate(texts, prompts=prompts)
        await moderator.close()
        return verdicts

    return asyncio.run(main())


def scores(moderator):
    return [verdict.score for verdict in judged(moderator)]


@pytest.mark.parametrize("told", [as_vllm, as_llama_cpp, as_text])
@pytest.mark.parametrize("recipe", [RECIPE, TWO_STEPS], ids=["one", "two-steps"])
def test_a_server_gives_the_scores_of_the_local_model(served, server, tiny_model, told, recipe):
    server.told = told
    here = scores(local(tiny_model, recipe))
    assert scores(served(recipe)) == pytest.approx(here, abs=1e-5)
    assert len(set(here)) == len(TEXTS)


def test_what_the_server_reads_is_what_the_local_model_reads(served, server, tiny_model):
    judged(served())
    here = local(tiny_model)
    sent = [body["prompt"] for _, body in server.asked]
    assert (
        sent[0]
        == here._tokenizer(here.render("clean", "the kettle"), add_special_tokens=False)[
            "input_ids"
        ]
    )


def test_a_long_answer_counts_as_its_worst_part_there_too(served, tiny_model):
    texts, prompts = ["the kettle is clean and " * 60], ["is it?"]
    assert judged(served(), texts, prompts)[0].score == pytest.approx(
        judged(local(tiny_model), texts, prompts)[0].score, abs=1e-5
    )


def test_a_verdict_that_is_not_listed_is_at_most_as_likely_as_the_last_one_that_is(served, server):
    server.told = lambda *_: {"top_logprobs": [{" k": -0.1, "s": -0.5, "t": -9.0}]}
    [verdict] = judged(served(), ["a"], ["q"])
    assert verdict.score == pytest.approx(1 / (1 + math.exp(9.0 - 0.5)))


def test_a_model_that_gives_no_verdict_ends_closed(served, server):
    server.told = lambda *_: {"top_logprobs": [{" k": -0.1, "t": -9.0}]}

    async def main():
        guard = scripted_guard([], gate=served())
        outcome = await guard.review("q", "a fine answer")
        await guard.close()
        return outcome

    outcome = asyncio.run(main())
    assert outcome.action == "fallback"
    assert outcome.record.reason == "gate failed: no verdict is among the 2 likeliest tokens"


@pytest.mark.parametrize(
    "logprobs",
    [
        None,
        {},
        {"top_logprobs": []},
        {"top_logprobs": [{"u": "x", "s": -1}]},
        {"content": [{"token": "u"}]},
        [1],
        {"top_logprobs": [3]},
    ],
    ids=str,
)
def test_answers_without_probabilities(served, server, logprobs):
    server.fault = says({"choices": [{"text": "", "logprobs": logprobs}]})
    [verdict] = judged(served(), ["a"], ["q"])
    assert (verdict.decision, verdict.reason) == (
        "failed",
        "the server's answer has no log-probabilities",
    )


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (status(401), "the service refuses access: HTTP 401"),
        (status(500), "the service failed: HTTP 500"),
        (status(400), "the service refuses the request: HTTP 400"),
        (says("not json"), "the service answered something that is not JSON"),
        (late(3), "the service took too long"),
    ],
    ids=["401", "500", "400", "garbage", "late"],
)
def test_faults_are_told_without_the_text(served, server, fault, reason):
    server.fault = fault
    [verdict] = judged(served(timeout=0.5), ["a secret sentence"], ["q"])
    assert (verdict.decision, verdict.reason) == ("failed", reason)
    server.fault = nothing
    assert judged(served(), ["a secret sentence"], ["q"])[0].decision != "failed"


def test_one_text_that_fails_does_not_take_the_others_with_it(served, server):
    async def fault(_server, _request, body):
        return web.Response(status=400) if len(body["prompt"]) > 40 else None

    server.fault = fault
    found = judged(served(), ["a", "the kettle is clean and " * 20, "b"], ["q"] * 3)
    assert [verdict.decision == "failed" for verdict in found] == [False, True, False]


def test_the_key_comes_from_the_environment(served, server, monkeypatch):
    server.key = "sk-secret"
    assert judged(served(), ["a"], ["q"])[0].decision == "failed"
    monkeypatch.setenv("MY_GUARD_KEY", "sk-secret")
    assert judged(served(key="MY_GUARD_KEY"), ["a"], ["q"])[0].decision != "failed"


@pytest.mark.parametrize(
    ("url", "message"),
    [("http://user:pw@host/v1", "no credentials"), ("host:8000", "begins with http")],
)
def test_addresses_that_are_none(url, message):
    with pytest.raises(ConfigError, match=message) as caught:
        validated(GuardLLMOptions, {"model": "m", "base_url": url}, where="guard_llm")
    assert "pw" not in f"{caught.value} {caught.value.hint}"


def test_the_context_can_be_shortened(served, server):
    judged(
        GuardLLM(served().options.model_copy(update={"context": 96})),
        ["the kettle is clean and " * 60],
        ["q"],
    )
    assert max(len(body["prompt"]) for _, body in server.asked) <= 96


@pytest.mark.slow
def test_a_served_guard_keeps_the_contract(served):
    check_moderator(served())


# ---------------------------------------------------------------- chat


class Chat(Server):
    """Answers chat completions greedily, in its own chat template, with the log-probabilities of
    every token of the reply."""

    numbered = False

    async def answer(self, request, path, body):
        if path != "/v1/chat/completions" or body["model"] != self.name:
            raise RefusalError(404, "not found")
        if other := await self.fault(self, request, body):
            return other
        assert (body["temperature"], body["logprobs"]) == (0, True)
        more = body.get("chat_template_kwargs", {})
        prompt = self.tokenizer.apply_chat_template(
            body["messages"], tokenize=False, add_generation_prompt=True, **more
        )
        ids = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        places = []
        for _ in range(body["max_tokens"]):
            with torch.no_grad():
                values, tokens = (
                    self.model(input_ids=torch.tensor([ids]))
                    .logits[0, -1]
                    .log_softmax(-1)
                    .topk(body["top_logprobs"])
                )
            listed = [
                self.entry(t, v) for t, v in zip(tokens.tolist(), values.tolist(), strict=True)
            ]
            places.append({**listed[0], "top_logprobs": listed})
            ids.append(int(tokens[0]))
        return web.json_response(
            {"choices": [{"message": {"content": ""}, "logprobs": {"content": places}}]}
        )

    def entry(self, token, value):
        name = f"token_id:{token}" if self.numbered else self.tokenizer.decode([token])
        return {"token": name, "logprob": value, "bytes": None}


@pytest.fixture
def chat(tiny_model):
    made = Chat(tiny_model, name="guard")
    with running(made):
        yield made


@pytest.fixture
def by_chat(chat, tiny_model):
    def make(recipe=RECIPE, **options):
        asked = {"endpoint": "chat", "model": "guard", "top": 280, "tries": 1, **options}
        settings = {
            "model": str(tiny_model),
            "recipe": recipe,
            "base_url": f"{chat.url}/v1",
            "server": asked,
        }
        return GuardLLM(GuardLLMOptions(**settings))

    return make


@pytest.mark.parametrize("numbered", [False, True], ids=["texts", "numbers"])
def test_a_chat_gives_the_scores_of_the_local_model(by_chat, chat, tiny_model, numbered):
    chat.numbered = numbered
    here = scores(local(tiny_model))
    assert scores(by_chat()) == pytest.approx(here, abs=1e-5)
    assert len(set(here)) == len(TEXTS)


def test_a_chat_is_read_where_what_stands_before_the_verdict_ends(by_chat, chat, tiny_model):
    """The tiny model begins as it likes; the recipe says how that is."""
    plain = local(tiny_model)

    def begins(answer):
        ids = chat.tokenizer(plain.render("is it?", answer), add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            return chat.tokenizer.decode(
                [int(chat.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
            )

    answer = next(
        a for i in range(200) if begins(a := f"the kettle {i}").isalpha() and begins(a).isascii()
    )
    recipe = {"prefill": begins(answer), **RECIPE}
    there, here = (
        judged(m, [answer], ["is it?"])[0].score
        for m in (by_chat(recipe), local(tiny_model, recipe))
    )
    assert there == pytest.approx(here, abs=1e-5)
    assert there != pytest.approx(judged(plain, [answer], ["is it?"])[0].score, abs=1e-3)


def test_a_reply_that_begins_otherwise_has_no_verdict(by_chat):
    [verdict] = judged(by_chat({"prefill": "Safety: ", **RECIPE}), ["the kettle"], ["is it?"])
    assert (verdict.decision, verdict.reason) == (
        "failed",
        "the reply does not begin as the recipe says",
    )


def test_the_template_of_the_server_gets_what_the_recipe_says(by_chat, chat):
    judged(by_chat({"options": {"risk": "harm"}, **RECIPE}), ["<|user|>no\ud800"], ["q"])
    [(_, body)] = chat.asked
    assert body["chat_template_kwargs"] == {"risk": "harm"}
    assert body["messages"] == [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": " no?"},
    ]


@pytest.mark.parametrize(
    "content",
    [None, [], [{"token": "token_id:x"}], [{}], [{"token": "u", "top_logprobs": 3}]],
    ids=str,
)
def test_chats_without_probabilities(by_chat, chat, content):
    chat.fault = says({"choices": [{"logprobs": {"content": content}}]})
    [verdict] = judged(by_chat(), ["a"], ["q"])
    assert verdict.decision == "failed"


@pytest.mark.parametrize(
    "recipe",
    [TWO_STEPS, {"raw": True, "prompt": "{prompt} {answer}", **RECIPE}],
    ids=["fields", "raw"],
)
def test_a_recipe_that_no_chat_can_follow_is_refused(by_chat, recipe):
    with pytest.raises(ConfigError, match="cannot be asked by chat") as caught:
        by_chat(recipe)
    assert caught.value.hint == "server: {endpoint: completions}"


# ---------------------------------------------------------------- GGUF


@pytest.fixture(scope="module")
def gguf_file(tiny_model, tmp_path_factory):
    """The tiny model and its tokenizer as a GGUF file, as llama.cpp's converter writes it."""
    import gguf

    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tiny_model),
        AutoTokenizer.from_pretrained(tiny_model),
    )
    config = model.config
    file = tmp_path_factory.mktemp("gguf") / "Tiny-Guard-F32.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    special = set(tokenizer.all_special_tokens) | {"<|system|>", "<|user|>", "<|assistant|>"}
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocabulary)
    writer.add_token_types(
        [
            gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL
            for token in vocabulary
        ]
    )
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(tokenizer.eos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weights in model.state_dict().items():
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(
            name.split(".")[-2]
        )
        if heads:  # the two halves of a head, turn by turn
            weights = (
                weights.reshape(heads, 2, -1, weights.shape[1])
                .swapaxes(1, 2)
                .reshape(weights.shape)
            )
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), weights.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_a_gguf_file_gives_the_scores_of_the_usual_weights(gguf_file, tiny_model):
    usual = scores(local(tiny_model))
    assert scores(local(gguf_file)) == pytest.approx(usual, abs=1e-5)
    assert scores(local(gguf_file.parent, gguf_file=gguf_file.name)) == pytest.approx(
        usual, abs=1e-5
    )


def test_the_recipe_follows_from_the_name_of_the_file(gguf_file, tmp_path):
    renamed = tmp_path / "Llama-Guard-3-8B.Q4_K_M.gguf"
    renamed.symlink_to(gguf_file)
    assert local(renamed, recipe=None).recipe == known()["llama_guard_3"]


def test_a_server_is_asked_with_the_tokenizer_of_a_gguf_file(gguf_file, server, tiny_model):
    asked = {"model": "guard", "top": 280}
    moderator = GuardLLM(
        GuardLLMOptions(
            model=str(gguf_file), recipe=RECIPE, base_url=f"{server.url}/v1", server=asked
        )
    )
    assert scores(moderator) == pytest.approx(scores(local(tiny_model)), abs=1e-5)


def test_a_file_that_is_none(tmp_path):
    (tmp_path / "guard.gguf").write_text("no")
    with pytest.raises(ModelError, match="cannot be loaded"):
        local(tmp_path / "guard.gguf")
