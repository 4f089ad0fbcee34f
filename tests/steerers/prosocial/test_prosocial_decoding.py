"""What answers are drawn from, with a tiny random model."""

import asyncio
from contextlib import contextmanager

import pytest
import torch
from transformers import AutoModelForCausalLM

from ttsa_guard.backends.base import ExposesLogits
from ttsa_guard.backends.local.controlled import Cached, fingerprint
from ttsa_guard.errors import ModelError
from ttsa_guard.messages import GenerationRequest, Message
from ttsa_guard.steerers.prosocial.adapter import Adapter, AdapterShape
from ttsa_guard.steerers.prosocial.harm_vector import HarmVector
from ttsa_guard.steerers.prosocial.preferences import EQUAL
from ttsa_guard.steerers.prosocial.product import Product

TEXTS = ("the kettle is clean", "what is in the other kitchen, and is it clean?")


@pytest.fixture(scope="module")
def model(tiny_model):
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)


@pytest.fixture(scope="module")
def harm(model, tiny_model):
    tuned = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in tuned.parameters():
            weight += 0.2 * torch.randn_like(weight)
    return HarmVector.difference(model, tuned, keep=0.5)


@pytest.fixture(scope="module")
def reward(model, tmp_path_factory):
    """An adapter that does something, as it comes from a file."""
    torch.manual_seed(2)
    adapter = Adapter(model, AdapterShape(rank=2), base=fingerprint(model))
    with torch.no_grad():
        for weight in adapter.parameters():
            weight.copy_(torch.randn_like(weight) * 0.5)
    path = tmp_path_factory.mktemp("adapter") / "reward.safetensors"
    adapter.save(path)
    return Adapter.load(path)


def requests(backend, temperature=0.0, **settings):
    prompts = [asyncio.run(backend.render([Message("user", t)])) for t in TEXTS]
    return [
        GenerationRequest(p, temperature=temperature, max_new_tokens=12, seed=i, **settings)
        for i, p in enumerate(prompts)
    ]


def drawn(backend, decoding, asked):
    return asyncio.run(backend.generate_controlled(asked, decoding))


def texts(found):
    return [(g.text, g.tokens, g.finished) for g in found]


def plain(backend, asked):
    return texts(asyncio.run(backend.generate(asked)))


def test_the_backend_says_that_it_can(tiny):
    assert isinstance(tiny, ExposesLogits)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("opening", ["", "the other"])
def test_alpha_zero_and_no_vector_are_base_decoding(tiny, reward, temperature, opening):
    asked = requests(tiny, temperature, opening=opening)
    assert texts(drawn(tiny, Product(None, reward, 1.0, 0.0, EQUAL), asked)) == plain(tiny, asked)


def test_a_zero_vector_is_base_decoding(tiny, harm):
    asked = requests(tiny, 1.0)
    zero = [Product(harm * 0.0, None, 1.0, 0.0, EQUAL), Product(harm, None, 0.0, 0.0, EQUAL)]
    assert all(texts(drawn(tiny, decoding, asked)) == plain(tiny, asked) for decoding in zero)


def test_soft_embeddings_are_decoded_as_they_are_without_control(tiny):
    asked = requests(tiny)
    moved = [r.with_(soft_embeds=asyncio.run(tiny.embed(r.prompt.soft_ids)) * 1.5) for r in asked]
    found = texts(drawn(tiny, Product(None, None, 1.0, 0.0, EQUAL), moved))
    assert found == plain(tiny, moved) != plain(tiny, asked)


def test_each_part_changes_the_answers_and_none_the_weights(tiny, harm, reward):
    asked = requests(tiny)
    before = tiny.fingerprint
    parts = [
        Product(harm, None, 1.0, 1.0, EQUAL),
        Product(None, reward, 1.0, 1.0, EQUAL),
        Product(harm, reward, 1.0, 1.0, EQUAL),
    ]
    found = [texts(drawn(tiny, decoding, asked)) for decoding in parts]
    assert len({str(f) for f in [*found, plain(tiny, asked)]}) == 4
    assert fingerprint(tiny._engine.model) == before
    assert texts(drawn(tiny, Product(None, None, 1.0, 1.0, EQUAL), asked)) == plain(tiny, asked)


def test_an_answer_does_not_depend_on_the_batch(tiny, harm, reward):
    asked = requests(tiny, 1.0)
    decoding = Product(harm, reward, 1.0, 1.0, EQUAL)
    assert texts(drawn(tiny, decoding, asked)) == [
        texts(drawn(tiny, decoding, [r]))[0] for r in asked
    ]


def test_preferences_decide(tiny, reward):
    asked = requests(tiny)
    found = {
        str(texts(drawn(tiny, Product(None, reward, 0.0, 3.0, {name: 1.0}), asked)))
        for name in EQUAL
    }
    assert len(found) > 1


@torch.no_grad()
def test_the_logits_are_those_of_the_equation(model, harm, reward):
    """Against the merged models, in one pass without a cache."""
    p, alpha, strength = {"empathy": 0.75, "helpfulness": 0.25}, 0.7, 1.5
    ids = torch.tensor([[5, 8, 13, 21, 34]])
    valid, at = torch.ones_like(ids, dtype=torch.bool), torch.arange(5)[None]
    with Product(harm, reward, strength, alpha, p).over(model) as step:
        embeds = model.get_input_embeddings()(ids)
        first = step(embeds[:, :3], valid[:, :3], at[:, :3])
        found = step(embeds[:, 3:], valid, at[:, 3:])
    with harm.subtracted(model, strength):
        safe = model(input_ids=ids).logits
        adapter = reward.on(model)
        adapter.prefer([0.75, 0.0, 0.0, 0.0, 0.25])
        layers = [
            name
            for name, _ in model.named_parameters()
            if name.rsplit(".", 2)[-2] in ("q_proj", "k_proj", "v_proj")
        ]
        kept = {name: dict(model.named_parameters())[name].clone() for name in layers}
        adapter.merge(model)
        preferred = model(input_ids=ids).logits
        for name, weight in kept.items():
            dict(model.named_parameters())[name].copy_(weight)
    expected = (safe + alpha * preferred) / (1 + alpha)
    assert torch.allclose(first, expected[:, 2], atol=1e-3)
    assert torch.allclose(found, expected[:, 4], atol=1e-3)


def test_the_likelihood_is_that_of_the_distribution_drawn_from(tiny):
    class Sure:
        @contextmanager
        def over(self, model):
            def step(embeds, *_):
                logits = torch.zeros(len(embeds), 4)
                logits[:, 3] = torch.tensor(6.0).log()  # 6 of 9
                return logits

            yield step

    [answer, _] = drawn(tiny, Sure(), requests(tiny))
    assert answer.log_likelihood == pytest.approx(torch.tensor(6 / 9).log().item(), abs=1e-5)


def test_weights_come_back_after_a_failure_within(tiny, harm):
    before = tiny.fingerprint

    class Broken:
        @contextmanager
        def over(self, model):
            with harm.subtracted(model):
                inner = Cached(model)

                def step(embeds, valid, at):
                    inner(embeds, valid, at)
                    raise RuntimeError("no")

                yield step

    with pytest.raises(ModelError):
        drawn(tiny, Broken(), requests(tiny))
    assert fingerprint(tiny._engine.model) == before


def test_a_cancelled_generation_stops_and_gives_the_weights_back(tiny, harm):
    before, seen = tiny.fingerprint, []

    class Slow:
        @contextmanager
        def over(self, model):
            with harm.subtracted(model):
                inner = Cached(model)

                def step(embeds, valid, at):
                    seen.append(1)
                    return inner(embeds, valid, at).index_fill(
                        -1, torch.tensor(tiny._engine.ends), -1e9
                    )

                yield step

    async def cancelled():
        asked = [
            GenerationRequest(await tiny.render([Message("user", TEXTS[0])]), max_new_tokens=200)
        ]
        work = asyncio.ensure_future(tiny.generate_controlled(asked, Slow()))
        while not seen:
            await asyncio.sleep(0)
        work.cancel()
        await asyncio.wait([work])
        await tiny.embed([1])  # after what the thread was doing

    asyncio.run(cancelled())
    assert len(seen) < 200
    assert fingerprint(tiny._engine.model) == before
