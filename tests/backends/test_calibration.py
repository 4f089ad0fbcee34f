"""Attention that is raised to some tokens of a prompt."""

import asyncio
import threading
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from ttsa_guard.backends.base import CalibratesAttention
from ttsa_guard.backends.local.batch import SHARED_FROM, SequenceBatch
from ttsa_guard.backends.local.calibration import CalibratedScores
from ttsa_guard.backends.local.decode import SharedDecoder
from ttsa_guard.backends.local.engine import Engine
from ttsa_guard.backends.local.reference import Start, left_padded
from ttsa_guard.errors import ModelError
from ttsa_guard.messages import Baseline, Calibration, GenerationRequest, Message
from ttsa_guard.steerers.anchor import spans

LAYERS = 4
PREFIX = "the kettle is clean."


@pytest.fixture(scope="module")
def model():
    """Four layers, whose weights are so large that attention is not even."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.3,
        eos_token_id=1,
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


CALIBRATION = Calibration((2, 3, 4, 5), (8, 9, 10, 11), (1, 2), 0.05)


def start(model, length, seed=0, calibration=None, first=8):
    """Tokens drawn by `seed`, of which `first` are a prefix."""
    ids = torch.randint(2, 64, (length,), generator=torch.Generator().manual_seed(seed))
    embeds = model.get_input_embeddings()(ids[first:]).detach()
    return Start(
        tuple(ids[:first].tolist()), embeds, max_new_tokens=12, seed=seed, calibration=calibration
    )


def expected(model, one):
    """The logits of every token, by a plain computation with the published equation."""
    calibration = one.calibration
    ids = torch.tensor([one.prefix_ids], dtype=torch.long)
    embeds = torch.cat([model.get_input_embeddings()(ids)[0], one.suffix_embeds])[None]
    raised = torch.zeros(embeds.shape[1], embeds.shape[1])
    for i in calibration.queries:
        raised[i, list(calibration.keys)] = calibration.gamma

    def attention(module, query, key, value, _mask, scaling, **_):
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        product = query @ key.transpose(-1, -2)
        scores = product * scaling
        if module.layer_idx in calibration.layers:
            scores = scores + raised * product.clamp(min=0) * scores
        weights = (scores + torch.full(scores.shape[-2:], -1e9).triu(1)).softmax(-1)
        return (weights @ value).transpose(1, 2).contiguous(), weights

    from transformers import AttentionInterface

    AttentionInterface.register("plain_calibration", attention)
    model.config._attn_implementation = "plain_calibration"
    try:
        with torch.no_grad():
            return model(inputs_embeds=embeds, use_cache=False).logits[0]
    finally:
        model.config._attn_implementation = "eager"


def logits(model, starts):
    """The logits of the last tokens of each, in one batch."""
    return SharedDecoder(model, [1]).logits(starts, 4).detach()


@pytest.mark.parametrize("length", [12, 17])
@pytest.mark.parametrize("first", [0, 6, 8])
@pytest.mark.parametrize("keys", [(2, 3, 4, 5), (3, 6, 7, 9, 11)])
def test_scores_are_raised_as_published(model, length, first, keys):
    one = start(model, length, calibration=replace(CALIBRATION, keys=keys), first=first)
    torch.testing.assert_close(
        logits(model, [one])[0], expected(model, one)[-4:], rtol=1e-4, atol=1e-4
    )
    assert not torch.allclose(
        logits(model, [one]), logits(model, [replace(one, calibration=None)]), atol=0.01
    )


def test_a_prefix_that_is_read_once_for_all_is_calibrated_too(model):
    length = SHARED_FROM // 8 + 20
    queries = tuple(range(length - 8, length - 4))
    calibration = replace(CALIBRATION, queries=queries)
    first = length - 10
    one = start(model, length, calibration=calibration, first=first)
    rest = [
        replace(start(model, first + n, seed=n, first=first), prefix_ids=one.prefix_ids)
        for n in (7, 9)
    ]
    many = [
        replace(s, prefix_ids=one.prefix_ids, calibration=calibration) for s in [one, *rest] * 3
    ]
    found = logits(model, many)
    for i, s in enumerate(many):
        torch.testing.assert_close(found[i], expected(model, s)[-4:], rtol=1e-4, atol=1e-4)


def test_the_other_sequences_of_a_batch_do_not_change(model):
    plain = [start(model, n, seed=n) for n in (12, 9, 15)]
    raised = [start(model, n, seed=n, calibration=CALIBRATION) for n in (13, 17)]
    mixed = logits(model, [plain[0], raised[0], plain[1], raised[1], plain[2]])
    torch.testing.assert_close(mixed[[0, 2, 4]], logits(model, plain), rtol=1e-5, atol=1e-5)
    for i, one in ((1, raised[0]), (3, raised[1])):
        torch.testing.assert_close(mixed[i], logits(model, [one])[0], rtol=1e-5, atol=1e-5)


def test_decoded_tokens_do_not_depend_on_the_batch(model):
    decoder = SharedDecoder(model, [1])
    warm = {"temperature": 0.9}
    starts = [
        replace(start(model, 12 + i, seed=i, calibration=c), **warm)
        for i, c in enumerate([None, CALIBRATION, replace(CALIBRATION, generated=True), None] * 2)
    ]
    alone = [decoder.decode([s])[0] for s in starts]
    assert decoder.decode(starts) == alone
    assert decoder.decode([replace(s, calibration=None) for s in starts]) != alone


def scores(queries, keys, calibration=CALIBRATION, watch=None):
    """Which of five queries and seven keys are calibrated, for two sequences."""
    chosen = [torch.zeros(2, n, dtype=torch.bool) for n in (5, 7)]
    for tensor, at in zip(chosen, (queries, keys), strict=True):
        tensor[:, list(at)] = True
    return CalibratedScores(calibration, *chosen, watch)


def attended(found, layer=1, scale=0.5, seed=0):
    draw = torch.Generator().manual_seed(seed)
    q = torch.randn(2, 4, 5, 4, generator=draw) * 2
    k, v = (torch.randn(2, 2, 7, 4, generator=draw) * 2 for _ in range(2))
    allowed = torch.ones(2, 5, 7, dtype=torch.bool).tril(2)
    return found.attend(layer, q, k, v, allowed, scale)


def test_rows_outside_of_the_queries_are_untouched():
    plain, raised = attended(scores((), ())), attended(scores((1, 3), (0, 2)))
    changed = (plain != raised).any(-1).any(1)
    assert changed.tolist() == [[False, True, False, True, False]] * 2


def test_other_layers_are_untouched():
    found = scores((1, 3), (0, 2))
    assert [found.of(layer) for layer in range(LAYERS)] == [False, True, True, False]
    assert torch.equal(attended(found, layer=0), attended(scores((), ()), layer=0))


def test_gamma_zero_and_a_query_that_sees_no_key_change_nothing():
    plain = attended(scores((), ()))
    assert torch.equal(attended(scores((1, 3), (0, 2), replace(CALIBRATION, gamma=0.0))), plain)
    unseen = attended(scores((0, 1), (6,)))
    assert torch.equal(unseen, plain)
    constant = replace(CALIBRATION, constant=True)
    torch.testing.assert_close(attended(scores((0, 1), (6,), constant)), plain)


def test_a_constant_gives_the_keys_the_same_share_in_another_way():
    shares = []
    outputs = []
    for constant in (False, True):
        found = scores(
            (1, 3),
            (0, 2),
            replace(CALIBRATION, gamma=0.3, constant=constant),
            watch=lambda _, share: shares.append(share),
        )
        outputs.append(attended(found))
    assert shares[0] == pytest.approx(shares[1], abs=1e-6)
    assert not torch.allclose(*outputs, atol=1e-3)


def test_long_prompts_are_done_in_slices(monkeypatch):
    whole = []
    found = scores((1, 3), (0, 2), watch=lambda _, share: whole.append(share))
    output = attended(found)
    monkeypatch.setattr("ttsa_guard.backends.local.calibration._MOST_SCORES", 2 * 4 * 7 * 2)
    torch.testing.assert_close(attended(found), output)
    assert whole[0] == pytest.approx(whole[1])


# ---------------------------------------------------------------------- through the backend


def prompts(backend):
    """A question with the prefix before it, the calibration, and the question alone."""
    plain, prefixed = (
        asyncio.run(backend.render([Message("user", text)]))
        for text in ("what is in it?", f"{PREFIX}\n\nwhat is in it?")
    )
    keys, queries = spans(plain, prefixed)
    layers = tuple(range(backend.attention_layers))
    return prefixed, Calibration(keys, queries, layers, 0.5), plain


def answers(backend, *requests):
    return [g.text for g in asyncio.run(backend.generate(requests))]


def test_the_backend_says_that_it_can(tiny):
    assert isinstance(tiny, CalibratesAttention)
    assert tiny.attention_layers == 2


def test_attention_rises_with_gamma_in_the_layers_that_are_calibrated(tiny):
    prefixed, calibration, _ = prompts(tiny)
    by_gamma = [
        asyncio.run(tiny.attention_shares(prefixed, replace(calibration, layers=(1,), gamma=gamma)))
        for gamma in (0.0, 0.1, 0.5, 2.0)
    ]
    before, calibrated = zip(*by_gamma, strict=True)
    assert len(set(before)) == 1
    assert sorted(set(calibrated)) == list(calibrated)
    assert calibrated[-1] > calibrated[0] + 0.05
    assert all(0 < share < 1 for shares in by_gamma for share in shares)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("opening", ["", "the other"])
def test_gamma_zero_is_the_prefix_alone(tiny, temperature, opening):
    prefixed, calibration, plain = prompts(tiny)
    alone = GenerationRequest(
        prefixed, opening=opening, temperature=temperature, baseline=Baseline(plain), seed=3
    )
    zero = alone.with_(calibration=replace(calibration, gamma=0.0))
    raised = alone.with_(calibration=calibration)
    found = asyncio.run(tiny.generate([alone, zero, raised]))
    assert found[0] == found[1]
    assert found[0].text != found[2].text


def test_keys_of_a_calibrated_prompt_are_not_kept_for_plain_ones(tiny_model):
    from ttsa_guard.backends.transformers import TransformersBackend, TransformersOptions

    options = {"model": str(tiny_model), "device": "cpu", "dtype": "float32"}
    one, other = (
        TransformersBackend(TransformersOptions(**options, batch_size=size)) for size in (7, 8)
    )
    prefixed, calibration, _ = prompts(one)
    plain = GenerationRequest(prefixed, temperature=0.0)
    raised = answers(one, plain.with_(calibration=calibration))
    assert answers(one, plain) == answers(other, plain) != raised
    assert answers(other, plain.with_(calibration=calibration)) == raised


def test_a_continued_answer_is_that_of_one_go(tiny):
    """Drafts are continued with what was said as the opening; its tokens are computed anew."""
    prefixed, calibration, _ = prompts(tiny)
    whole = GenerationRequest(prefixed, temperature=0.0, max_new_tokens=12, calibration=calibration)
    [draft] = answers(tiny, whole.with_(max_new_tokens=6))
    [rest] = answers(tiny, whole.with_(opening=draft, max_new_tokens=6))
    [plain] = answers(tiny, whole.with_(opening=draft, max_new_tokens=6, calibration=None))
    assert rest.startswith(draft)
    assert rest != plain


def test_scores_of_the_same_model_at_the_same_moment_are_not_affected(tiny):
    prefixed, calibration, _ = prompts(tiny)
    raised = GenerationRequest(prefixed, calibration=calibration, max_new_tokens=8)

    async def measured():
        return await tiny.log_likelihoods(prefixed, ["the kettle", "in the kitchen"])

    async def both():
        found = await asyncio.gather(
            *(one for _ in range(3) for one in (tiny.generate([raised] * 3), measured()))
        )
        return found[1::2]

    alone = asyncio.run(measured())
    assert asyncio.run(both()) == [pytest.approx(alone, abs=1e-5)] * 3


def test_attention_is_as_before_after_an_exception(model):
    class Broken(SequenceBatch):
        def extend(self, layer, keys, values):
            if layer == 2:
                raise RuntimeError("broken")
            return super().extend(layer, keys, values)

    plain = [start(model, 12)]
    before = logits(model, plain)
    batch = Broken(SharedDecoder(model, [1]).model, [start(model, 12, calibration=CALIBRATION)])
    with pytest.raises(RuntimeError, match="broken"):
        batch.forward(*left_padded([plain[0].suffix_embeds]), 1)
    assert model.config._attn_implementation == "eager"
    assert torch.equal(logits(model, plain), before)


def test_what_cannot_be_calibrated_is_refused(tiny, tiny_model):
    tokenizer = tiny._engine.tokenizer
    sliding = LlamaConfig.from_pretrained(tiny_model)
    sliding.layer_types = ["sliding_attention"] * 2
    torch.manual_seed(0)
    other = Engine(AutoModelForCausalLM.from_config(sliding), tokenizer, batch_size=4)
    prefixed, calibration, _ = prompts(tiny)
    request = GenerationRequest(prefixed, calibration=calibration)
    assert other.attention_layers == 0
    with pytest.raises(ModelError, match="cannot be calibrated"):
        other.generate([request], [threading.Event()])
    with pytest.raises(ModelError, match="cannot be calibrated"):
        other.attention_shares(prefixed, calibration)
    with pytest.raises(ModelError, match="calibrates no attention"):
        asyncio.run(tiny.generate_controlled([request], None))
