"""Our decoding loop against the models' own `generate`."""

import math
import threading
from contextlib import contextmanager
from dataclasses import replace
from statistics import mean

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from ttsa_guard.backends.local.batch import SHARED_FROM
from ttsa_guard.backends.local.decode import SharedDecoder, choose
from ttsa_guard.backends.local.likelihood import LikelihoodQuery, Likelihoods
from ttsa_guard.backends.local.prefix_cache import KEPT_TOKENS
from ttsa_guard.backends.local.reference import ReferenceDecoder, Start

SIZES = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
ENDS = (1, 2, 3)


def built(kind, **changes):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **changes})
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(scope="module")
def model():
    return built("Qwen2")


@pytest.fixture
def both(model):
    return SharedDecoder(model, ENDS), ReferenceDecoder(model, ENDS)


def start(model, fixed, rest, seed=0, **options):
    """`fixed` ids, then `rest` moved embeddings; both are drawn by their length and `seed`."""
    draw = torch.Generator().manual_seed(1000 * fixed + seed)
    ids = tuple(
        torch.randint(4, 512, (fixed,), generator=torch.Generator().manual_seed(fixed)).tolist()
    )
    embeds = model.get_input_embeddings()(torch.randint(4, 512, (rest,), generator=draw)).detach()
    return Start(
        ids,
        embeds + 0.01 * torch.randn(embeds.shape, generator=draw),
        **{"max_new_tokens": 24, "seed": seed, **options},
    )


def batches(model):
    """Copied and shared beginnings, alone and among others, long and short, none at all."""
    few = [start(model, 20, n, seed=n) for n in (1, 7, 3)]
    many = [start(model, SHARED_FROM // 8, 5 + i % 3, seed=i) for i in range(9)]
    bare = [start(model, 0, n, seed=n) for n in (4, 9)]
    return {
        "copied": few,
        "shared": many,
        "bare": bare,
        "one": few[:1],
        "mixed": [many[0], *bare, *few, *many[1:]],
    }


@pytest.mark.parametrize("kind", ["copied", "shared", "bare", "one", "mixed"])
def test_greedy_tokens_are_those_of_generate(model, both, kind):
    ours, reference = (decoder.decode(batches(model)[kind]) for decoder in both)
    assert ours == reference
    assert all(len(ids) == 24 or ids[-1] in ENDS for ids in ours)


def test_sampled_tokens_do_not_depend_on_the_batch(model, both):
    starts = [
        start(model, 20 if i % 2 else 200, 3 + i, seed=i, temperature=0.9, max_new_tokens=5 + 3 * i)
        for i in range(6)
    ]
    ours, reference = (decoder.decode(starts) for decoder in both)
    assert ours == reference == [both[0].decode([one])[0] for one in starts]
    assert [len(ids) for ids in ours] == [
        s.max_new_tokens if out[-1] not in ENDS else len(out)
        for s, out in zip(starts, ours, strict=True)
    ]


def test_long_conversations_are_computed_once(model, both):
    starts = [start(model, 900, 5, seed=i, max_new_tokens=2) for i in range(8)]
    for prefix in ([512, 388], []):  # in pieces
        with counted(model) as tokens:
            both[0].decode(starts)
        assert tokens == [*prefix, 8 * 5, 8]


@contextmanager
def counted(model):
    """Rows times tokens of every call of the model."""
    found = []

    def hook(_, __, options):
        found.append(options["inputs_embeds"].shape[0] * options["inputs_embeds"].shape[1])

    handle = model.register_forward_pre_hook(hook, with_kwargs=True)
    yield found
    handle.remove()


def test_a_later_turn_goes_on_from_what_was_computed(model, both):
    long = start(model, 300, 4, max_new_tokens=8)
    shorter, longer = (
        replace(long, prefix_ids=long.prefix_ids[:200]),
        replace(long, prefix_ids=(*long.prefix_ids, 7, 8, 9)),
    )
    for one, new in ((long, [300]), (shorter, []), (longer, [3])):
        with counted(model) as tokens:
            found = both[0].decode([one])
        assert tokens == [*new, 4, *[1] * (len(found[0]) - 1)]
        assert found == both[1].decode([one])


def test_what_is_kept_is_bounded(model):
    decoder = SharedDecoder(model, ENDS)
    for i in range(4, 4 + 6):
        decoder.decode([start(model, 3000 + i, 1, max_new_tokens=1)])
    assert KEPT_TOKENS / 2 < decoder.model.kept_tokens <= KEPT_TOKENS


def test_finished_rows_leave_the_batch(model):
    starts = [
        start(model, 20, 3, seed=i, max_new_tokens=most) for i, most in enumerate((2, 2, 2, 12))
    ]
    with counted(model) as tokens:
        SharedDecoder(model, [512]).decode(starts)  # an end that never comes
    assert tokens[-10:] == [1] * 10


def test_a_stopped_row_ends_and_the_others_go_on(model, both):
    stop = threading.Event()
    starts = [start(model, 20, 3, seed=1, stop=stop), start(model, 20, 5, seed=2)]
    alone = both[1].decode(starts[1:])
    for decoder in both:
        stop.clear()

        def third(new):
            if len(new[0]) == 3:
                stop.set()
            return ()

        found = decoder.decode(starts, third)
        assert len(found[0]) in (3, 4)
        assert found[1:] == alone


def test_a_row_that_is_told_to_end_does_and_the_others_go_on(model, both):
    starts = [start(model, 20, 5, seed=2), start(model, 20, 3, seed=1), start(model, 30, 4, seed=3)]
    whole = both[1].decode(starts)
    for decoder in both:
        found = decoder.decode(starts, lambda new: [1] if len(new[1]) == 4 else [])
        assert found == [whole[0], whole[1][:4], whole[2]]


def test_gradients_go_through_shared_beginnings(model, both):
    leaves, found = [], []
    for decoder in both:
        mixed = batches(model)["mixed"]
        leaf = [s.suffix_embeds.clone().requires_grad_() for s in mixed]
        starts = [Start(s.prefix_ids, rest) for s, rest in zip(mixed, leaf, strict=True)]
        logits = decoder.logits(starts, 1)
        logits.log_softmax(-1)[..., 5].sum().backward()
        leaves.append([rest.grad for rest in leaf])
        found.append(logits.detach())
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    for ours, reference in zip(*leaves, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-3, atol=1e-5)


# ---------------------------------------------------------------------- likelihoods after another
# prompt


def measured(model, floors=(-math.inf,) * 5):
    """Rows, and what all but the last are measured by: short prompts and such as are shared, with
    and without openings."""
    starts = [
        start(model, 20, 3 + i, seed=i, temperature=0.9, max_new_tokens=10 + 7 * i)
        for i in range(6)
    ]
    prompts = [
        start(model, n, 0).prefix_ids
        for n in (30, SHARED_FROM // 3, SHARED_FROM // 3, SHARED_FROM // 3, 1)
    ]
    return starts, {
        i: LikelihoodQuery(prompts[i], tuple(range(5, 5 + i)), starts[i].max_new_tokens, floors[i])
        for i in range(5)
    }


def after(model, asked, new):
    """Log-likelihood of every token of an answer, computed without any of our code."""
    ids = torch.tensor(
        [[*asked.prompt, *asked.opening, *(token for token in new if token not in ENDS)]]
    )
    with torch.no_grad():
        logits = model(ids).logits[0, len(asked.prompt) - 1 : -1].log_softmax(-1)
    return logits.gather(-1, ids[0, len(asked.prompt) :, None])[:, 0].tolist()


def test_answers_are_measured_after_another_prompt_while_they_grow(model, both):
    starts, asked = measured(model)
    likelihoods = Likelihoods(both[0].model, asked, ENDS)
    new = both[0].decode(starts, likelihoods)
    assert new == both[0].decode(starts)
    expected = {i: mean(after(model, a, new[i])) for i, a in asked.items()}
    assert likelihoods.means(new) == pytest.approx(expected, abs=1e-4)


def test_a_long_opening_of_a_short_answer_and_the_other_way_round(model):
    decoder = SharedDecoder(model, [512])  # an end that never comes
    starts = [
        start(model, 20, 3, seed=1, max_new_tokens=10),
        start(model, 20, 3, seed=2, max_new_tokens=40),
    ]
    asked = {
        0: LikelihoodQuery((7, 8), tuple(range(5, 25)), 10, -math.inf),
        1: LikelihoodQuery((7, 8), (), 40, -math.inf),
    }
    likelihoods = Likelihoods(decoder.model, asked, [512])
    new = decoder.decode(starts, likelihoods)
    expected = {i: mean(after(model, a, new[i])) for i, a in asked.items()}
    assert likelihoods.means(new) == pytest.approx(expected, abs=1e-4)


def test_an_answer_ends_early_only_if_it_cannot_reach_its_floor(model, both):
    floors = (-2.0, -2.0, -20.0, -2.0, -0.1)
    starts, asked = measured(model, floors)
    whole = both[0].decode(starts)
    likelihoods = Likelihoods(both[0].model, asked, ENDS)
    new = both[0].decode(starts, likelihoods)
    means = likelihoods.means(new)
    for i, a in asked.items():
        values = after(model, a, whole[i])
        hopeless = [
            n
            for n in (8, 16, 32)
            if n < len(whole[i]) and sum(values[: len(a.opening) + n]) < a.least
        ]
        assert new[i] == whole[i][: min(hopeless, default=None)]
        assert means[i] == pytest.approx(mean(after(model, a, new[i])), abs=1e-4)
        assert not hopeless or max(means[i], mean(values)) < a.floor
    assert 2 <= sum(new[i] != whole[i] for i in asked) <= 4
    assert new[5] == whole[5]


def test_every_token_is_measured_once(model):
    starts, asked = (
        [start(model, 20, 3, max_new_tokens=40)],
        {0: LikelihoodQuery(start(model, 30, 0).prefix_ids, (5, 6), 40, -math.inf)},
    )
    decoder = SharedDecoder(model, [512])
    with counted(model) as plain:
        decoder.decode(starts)
    likelihoods = Likelihoods(decoder.model, asked, [512])
    with counted(model) as tokens:
        likelihoods.means(decoder.decode(starts, likelihoods))
    assert sum(tokens) == sum(plain) - 20 + 2 + 40  # the beginning is known by now


def test_an_answer_that_ends_at_once_has_a_likelihood_too(both):
    asked = {0: LikelihoodQuery((7, 8), (), 5, -1.0)}
    assert Likelihoods(both[0].model, asked, ENDS).means([[ENDS[0]]]) == {0: 0.0}


# ---------------------------------------------------------------------- which models take it


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("Llama", {}),
        ("Llama", {"num_key_value_heads": 4}),
        ("Qwen2", {}),
        ("Qwen3", {"head_dim": 32}),
        ("Mistral", {"sliding_window": None}),
        ("Gemma", {"head_dim": 16}),
        ("Phi3", {}),
        ("Granite", {}),
        ("OPT", {"word_embed_proj_dim": 64, "ffn_dim": 96}),
        ("GPT2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}),
    ],
    ids=str,
)
def test_plain_models_are_decoded_by_our_loop(kind, changes):
    decoder, problem = choose(built(kind, **changes), ENDS)
    assert (type(decoder), problem) == (SharedDecoder, "")


@pytest.mark.parametrize(
    ("kind", "changes", "why"),
    [
        ("Mistral", {"sliding_window": 128}, "sliding"),
        ("Gemma2", {"head_dim": 16, "sliding_window": 128}, "sliding_attention"),
        (
            "Qwen2",
            {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1},
            "sliding_attention",
        ),
        ("Bloom", {"n_head": 4, "n_layer": 2}, "trial"),
    ],
    ids=str,
)
def test_other_models_are_decoded_by_generate_and_it_is_said_why(kind, changes, why):
    model = built(kind, **changes)
    decoder, problem = choose(model, ENDS)
    assert isinstance(decoder, ReferenceDecoder)
    assert why in problem
    assert decoder.decode([start(model, 10, 3)])


def test_bfloat16_is_taken_too():
    decoder, problem = choose(built("Qwen2").to(torch.bfloat16), ENDS)
    assert (type(decoder), problem) == (SharedDecoder, "")
