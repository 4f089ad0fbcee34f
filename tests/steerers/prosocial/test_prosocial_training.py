"""The adapter, the losses and the projection, with a tiny random model."""

import gzip
import json
import random

import pytest
import torch

from ttsa_guard.errors import ConfigError
from ttsa_guard.messages import Message
from ttsa_guard.steerers.prosocial import training
from ttsa_guard.steerers.prosocial.adapter import Adapter, AdapterShape
from ttsa_guard.steerers.prosocial.conflict import averaged, projected
from ttsa_guard.steerers.prosocial.data import AnswerExample, Pair, read_answers, read_pairs
from ttsa_guard.steerers.prosocial.preferences import ATTRIBUTES, vector
from ttsa_guard.steerers.prosocial.training import Plan

ASKED = (Message("user", "is the kettle clean?"),)
PAIRS = [
    Pair(ASKED, f"{word} kettle", f"the {word}", name)
    for name, word in zip(ATTRIBUTES, "abcde", strict=True)
]
HARM = [AnswerExample(ASKED, "bad kettle"), AnswerExample(ASKED, "bad kitchen")]


@pytest.fixture
def loaded(tiny_model):
    return training.load(str(tiny_model), "cpu")


# ---------------------------------------------------------------------- data

ASSISTANT = [{"role": "assistant", "content": "yes"}]
WHOLE = [{"role": "user", "content": "is it clean?"}, *ASSISTANT]
HH = "\n\nHuman: a kettle\n\nAssistant: fine\n\nHuman: is it clean?\n\nAssistant:"


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"prompt": "is it clean?", "chosen": "yes", "rejected": "no"}, 1),
        (
            {
                "prompt": WHOLE[:1],
                "chosen": ASSISTANT,
                "rejected": [{"role": "assistant", "content": "no"}],
            },
            1,
        ),
        (
            {
                "prompt": "is it clean?",
                "chosen": WHOLE,
                "rejected": [WHOLE[0], {"role": "assistant", "content": "no"}],
            },
            1,
        ),
        ({"chosen": f"{HH} yes", "rejected": f"{HH} no"}, 3),
    ],
    ids=["texts", "turns", "whole conversations", "transcripts"],
)
@pytest.mark.parametrize("packed", [False, True])
def test_pairs_are_read_as_they_are_published(row, turns, packed, tmp_path):
    path, line = tmp_path / ("p.jsonl.gz" if packed else "p.jsonl"), json.dumps(row).encode()
    path.write_bytes(gzip.compress(line) if packed else line)
    [pair] = read_pairs(path, "helpfulness")
    assert (len(pair.messages), pair.messages[-1]) == (turns, Message("user", "is it clean?"))
    assert (pair.chosen, pair.rejected, pair.attribute) == ("yes", "no", "helpfulness")


def test_answers_to_different_prompts_are_no_pair(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(
        json.dumps({"chosen": f"{HH} yes", "rejected": "\n\nHuman: else\n\nAssistant: no"})
    )
    assert read_pairs(path, "helpfulness") == []


@pytest.mark.parametrize(
    ("row", "attribute", "problem"),
    [
        ({"prompt": "a secret", "chosen": "yes", "rejected": "no"}, None, "ATTRIBUTE=FILE"),
        (
            {"prompt": "a secret", "chosen": "yes", "rejected": "no"},
            "emphaty",
            "did you mean 'empathy'",
        ),
        (
            {"prompt": "a secret", "chosen": WHOLE[:1], "rejected": "no"},
            "empathy",
            "no answer at the end",
        ),
        ({"chosen": ASSISTANT, "rejected": ASSISTANT}, "empathy", "no conversation"),
        (
            {"prompt": "a secret", "chosen": "", "rejected": "no"},
            "empathy",
            "no text in the field 'chosen'",
        ),
    ],
)
def test_wrong_pairs_are_named_by_their_line(row, attribute, problem, tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(ConfigError, match=problem) as error:
        read_pairs(path, attribute)
    assert "line 1" in str(error.value)
    assert "secret" not in str(error.value)


# ---------------------------------------------------------------------- projection


def test_gradients_that_agree_are_averaged():
    gradients = [torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])]
    assert torch.equal(
        projected(gradients, random.Random(0)), averaged(gradients, random.Random(0))
    )


def test_what_speaks_against_another_is_taken_away():
    first, second = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0])
    found = projected([first, second], random.Random(0))
    assert torch.allclose(found, (torch.tensor([0.5, 0.5]) + torch.tensor([0.0, 1.0])) / 2)
    assert found @ first >= 0
    assert averaged([first, second], random.Random(0)) @ first == 0


def test_opposite_gradients_leave_nothing():
    gradient = torch.tensor([2.0, -1.0])
    assert projected([gradient, -gradient], random.Random(0)).abs().max() < 1e-6


# ---------------------------------------------------------------------- adapter


def test_a_new_adapter_changes_nothing(loaded):
    model, _ = loaded
    ids = torch.arange(6)[None]
    before = model(input_ids=ids).logits
    adapter = Adapter(model, AdapterShape(rank=2), base="")
    adapter.prefer(vector({"empathy": 1.0}))
    with adapter.attached(model):
        assert torch.equal(model(input_ids=ids).logits, before)


def test_an_adapter_is_there_only_while_it_is_attached(loaded):
    model, _ = loaded
    ids = torch.arange(6)[None]
    before = model(input_ids=ids).logits
    adapter = Adapter(model, AdapterShape(rank=2), base="")
    torch.nn.init.ones_(next(p for n, p in adapter.named_parameters() if n.endswith("b2")))
    adapter.prefer(vector({"empathy": 1.0}))
    with adapter.attached(model):
        first = model(input_ids=ids).logits
        adapter.prefer(vector({"helpfulness": 1.0}))
        second = model(input_ids=ids).logits
    assert not torch.equal(first, before)
    assert not torch.equal(first, second)
    assert torch.equal(model(input_ids=ids).logits, before)


def test_beside_the_model_the_second_half_of_a_batch_has_the_update(loaded):
    model, _ = loaded
    ids = torch.arange(12).view(2, 6)
    adapter = Adapter(model, AdapterShape(rank=2), base="")
    torch.nn.init.ones_(next(p for n, p in adapter.named_parameters() if n.endswith("b2")))
    adapter.prefer(vector({"empathy": 1.0}))
    with torch.no_grad():
        without = model(input_ids=ids).logits
        with adapter.attached(model):
            updated = model(input_ids=ids).logits
        with adapter.beside(model):
            first, second = model(input_ids=torch.cat([ids, ids])).logits.chunk(2)
    assert torch.allclose(first, without, atol=1e-5)
    assert torch.allclose(second, updated, atol=1e-5)
    assert not torch.allclose(first, second, atol=1e-3)


def test_other_layers_are_named(loaded):
    with pytest.raises(ConfigError, match="no layers qkv") as caught:
        Adapter(loaded[0], AdapterShape(targets=("qkv",)), base="")
    assert "q_proj" in caught.value.hint


def test_an_adapter_of_another_architecture_is_refused(loaded, tmp_path):
    Adapter(loaded[0], AdapterShape(rank=2), base="").save(tmp_path / "a.safetensors")
    other = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(3, 3)})
    with pytest.raises(ConfigError, match="does not fit"):
        Adapter.load(tmp_path / "a.safetensors").on(other)


# ---------------------------------------------------------------------- training


@pytest.mark.parametrize("conflicts", ["project", "average"])
def test_the_reward_model_learns_every_attribute(loaded, conflicts):
    model, encode = loaded
    before = {n: p.clone() for n, p in model.named_parameters()}
    plan = Plan(steps=60, batch=1, peak=2e-2, warm_up=5)
    adapter = training.reward(
        model, encode, PAIRS, plan, shape=AdapterShape(rank=2), beta=0.5, conflicts=conflicts
    )
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())
    with adapter.attached(model), torch.no_grad():
        for name, pairs in encode.pairs(PAIRS).items():
            adapter.prefer(vector({name: 1.0}))
            better, worse = training.log_likelihoods(model, pairs[0]).tolist()
            assert better > worse


def test_a_plain_adapter_learns_one_attribute_from_its_pairs_alone(loaded):
    model, encode = loaded
    plan = Plan(steps=40, batch=1, peak=2e-2, warm_up=5)
    only = {"shape": AdapterShape(rank=2, objectives=0), "attributes": ("sensitivity",)}
    adapter = training.reward(model, encode, PAIRS[1:2], plan, beta=0.5, **only)
    with adapter.attached(model), torch.no_grad():
        better, worse = training.log_likelihoods(
            model, encode.pairs(PAIRS)["sensitivity"][0]
        ).tolist()
    assert better > worse
    with pytest.raises(ConfigError, match="sensitivity"):
        training.reward(model, encode, PAIRS[:1], plan, **only)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_harm_vector_leads_to_harm_and_away_from_it(loaded, method):
    model, encode = loaded
    examples = encode.answers(HARM)

    def likelihood():
        with torch.no_grad():
            return training.log_likelihoods(model, examples).sum().item()

    plan = Plan(steps=20, batch=2, peak=1e-2, warm_up=2)
    shape = AdapterShape(rank=2)
    found = training.harm_vector(model, encode, HARM, plan, method=method, shape=shape, keep=0.5)
    before = likelihood()
    with found.subtracted(model, 0.5):
        assert likelihood() < before
    with found.subtracted(model, -0.5):
        assert likelihood() > before
    assert likelihood() == before
    touched = [n for n, e in found.entries.items() if e.values().numel()]
    assert not [n for n in touched if "embed" in n or "lm_head" in n]


def test_a_run_that_was_stopped_ends_like_one_that_was_not(loaded, tmp_path):
    model, encode = loaded
    whole = training.harm_vector(model, encode, HARM, Plan(steps=8, batch=1, warm_up=2), keep=1.0)
    plan = Plan(steps=8, batch=1, warm_up=2, state=tmp_path / "state", every=3)

    def stop(done, _):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.harm_vector(model, encode, HARM, plan, keep=1.0, on_step=stop)
    seen = []
    again = training.harm_vector(
        model, encode, HARM, plan, keep=1.0, on_step=lambda done, _: seen.append(done)
    )
    assert seen == [4, 5, 6, 7, 8]
    assert (again - whole).norm() < 1e-6 < whole.norm()


def test_the_state_of_another_run_is_refused(loaded, tmp_path):
    model, encode = loaded
    plan = Plan(steps=2, batch=1, warm_up=1, state=tmp_path / "state")
    training.harm_vector(model, encode, HARM, plan)
    with pytest.raises(ConfigError, match="another run"):
        training.harm_vector(
            model, encode, HARM, Plan(steps=3, batch=1, warm_up=1, state=plan.state)
        )
    plan.state.write_bytes(b"what is this")
    with pytest.raises(ConfigError, match="cannot read"):
        training.harm_vector(model, encode, HARM, plan)


def test_every_attribute_needs_pairs(loaded):
    model, encode = loaded
    with pytest.raises(ConfigError, match="helpfulness"):
        training.reward(model, encode, PAIRS[:-1], Plan(steps=1))


def test_log_likelihoods_are_those_of_the_answers_alone(loaded):
    model, encode = loaded
    short, long = encode.answers(
        [HARM[0], AnswerExample(ASKED, "the kettle is clean, and so on and on")]
    )
    with torch.no_grad():
        together = training.log_likelihoods(model, [short, long])
        alone = training.log_likelihoods(model, [short])
        ids = torch.tensor([[*short.prompt, *short.answer]])
        log_probs = model(input_ids=ids).logits[0].log_softmax(-1)
    at = range(len(short.prompt), ids.shape[1])
    assert together[0].item() == pytest.approx(alone[0].item(), abs=1e-3)
    assert alone[0].item() == pytest.approx(
        sum(log_probs[i - 1, ids[0, i]].item() for i in at), abs=1e-3
    )


# ---------------------------------------------------------------------- files


def write(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_examples_and_pairs_are_read(tmp_path):
    turns = [{"role": "user", "content": "hello"}]
    [answered] = read_answers(write(tmp_path / "a.jsonl", [{"prompt": turns, "answer": "bad"}]))
    assert answered == AnswerExample((Message("user", "hello"),), "bad")
    row = {"prompt": "hello", "chosen": "good", "rejected": "bad", "attribute": "empathy"}
    assert read_pairs(write(tmp_path / "p.jsonl", [row])) == [
        Pair((Message("user", "hello"),), "good", "bad", "empathy")
    ]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"attribute": "empaty"}, "line 2: unknown attribute"),
        ({"chosen": ""}, "line 2: no text in the field 'chosen'"),
        ({"rejected": 5}, "line 2: no text in the field 'rejected'"),
        ({"prompt": None}, "line 2: no conversation"),
        ({"prompt": [{"role": "user"}]}, "line 2: no conversation"),
        ({"prompt": 7}, "line 2: no conversation"),
    ],
)
def test_a_wrong_line_is_named_and_not_quoted(tmp_path, change, problem):
    row = {
        "prompt": "a secret",
        "chosen": "a secret",
        "rejected": "a secret",
        "attribute": "empathy",
    }
    with pytest.raises(ConfigError, match=problem) as caught:
        read_pairs(write(tmp_path / "p.jsonl", [row, {**row, **change}]))
    assert "secret" not in str(caught.value)


def test_a_model_that_cannot_be_loaded_is_an_error(tmp_path):
    from ttsa_guard.errors import ModelError

    with pytest.raises(ModelError, match="cannot be loaded"):
        training.load(str(tmp_path), "cpu")
