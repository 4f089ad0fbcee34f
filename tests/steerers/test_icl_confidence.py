"""The ICL-confidence steerer: its proxy by hand, its labels on the tiny model's tokens, its rounds
on scripted pieces."""

import asyncio
import copy
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ttsa_guard.backends.base import ExposesLogProbs
from ttsa_guard.backends.transformers import TransformersBackend, TransformersOptions
from ttsa_guard.budget import Budget, Usage
from ttsa_guard.config import Use
from ttsa_guard.errors import ConfigError, ModelError
from ttsa_guard.hf.chat_template import locate
from ttsa_guard.messages import GenerationRequest, Message, Prompt, Soft, Tokens
from ttsa_guard.plugins import Plugins
from ttsa_guard.profile import GENERIC
from ttsa_guard.steerers.base import Steerer, Task
from ttsa_guard.steerers.icl_confidence import (
    IclConfidence,
    IclConfidenceOptions,
    find_labels,
    label_tokens,
    proxy,
)
from ttsa_guard.testing import FakeClock, ScriptedBackend, ScriptedModerator, scripted_guard

run = asyncio.run
FEW_SHOT = (
    "Input: the kettle\nLabel: clean\n\nInput: the kitchen\nLabel: in the other\n\nInput: a"
    " kettle\nLabel:"
)
FINE = (
    "Input: the soup is nice\nLabel: good\n\nInput: the room is old\nLabel: bad\n\nInput: the park"
    " is new\nLabel:"
)
HIDDEN = 4


def log(*probabilities):
    return torch.tensor([probabilities]).log()


def task(backend, content=FEW_SHOT, seed=5, **budget):
    messages = (
        Message("user", "Label: not this one\n"),
        Message("assistant", "ok"),
        Message("user", content),
    )
    base = GenerationRequest(
        run(backend.render(messages)), max_new_tokens=8, temperature=0.5, seed=seed
    )
    usage = Usage(Budget(**budget), FakeClock())

    async def score(texts):
        usage.charge(moderation_calls=1)
        return await ScriptedModerator().moderate(texts, prompts=[content] * len(texts))

    return Task(messages, "bad", backend, base, GENERIC, usage, score, seed=seed)


def steer(job, **options):
    async def main():
        return [r async for r in IclConfidence(IclConfidenceOptions(**options)).steer(job)]

    return run(main())


class Scripted(ScriptedBackend):
    """Words are tokens; the first of them is all that a label's log-probability depends on. `value`
    is of that row's sum."""

    token_norm = 2.0

    def __init__(self, value=lambda total: 0.5 * math.exp(-((total - 2 * HIDDEN) ** 2) / 100)):
        super().__init__(lambda request: f"answer {request.seed}")
        self.value, self.asked = value, []

    async def render(self, messages, *, scope="user"):
        return Prompt(
            (
                Tokens((0,)),
                Soft(tuple(range(1, 1 + len(messages[-1].content.split())))),
                Tokens((0,)),
            )
        )

    async def locate(self, messages):
        text, spans, end = messages[-1].content, [(0, 0)], 0
        for word in text.split():
            start = text.index(word, end)
            end = start + len(word)
            spans.append((start, end))
        return text, [*spans, (len(text), len(text))]

    async def embed(self, ids):
        return torch.ones(len(ids), HIDDEN)

    async def token_log_probs(self, prompt, rows, positions):
        self.asked.append(torch.stack(list(rows)))
        return torch.tensor([[self.value(float(r[0].sum()))] * len(positions) for r in rows]).log()

    @property
    def rows(self):
        return [request.soft_embeds for [request] in self.calls]


@pytest.fixture(scope="module")
def model(tiny_model):
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


def test_it_is_a_steerer_and_a_plugin():
    steerer = Plugins().make("steerers", Use(use="icl_confidence", options={"label": "=>"}))
    assert isinstance(steerer, Steerer)
    assert steerer.options == IclConfidenceOptions(label="=>")
    with pytest.raises(ConfigError, match=r"needs a backend that .*ExposesLogProbs"):
        scripted_guard(steerers=[steerer])


def test_the_defaults_are_the_published_ones():
    options = IclConfidenceOptions()
    assert (options.probes, options.probe, options.step, options.clip) == (16, 0.001, 0.03, 1.0)
    assert (options.cosine, options.gate, options.signal) == (0.2, 0.1, 0.0)
    assert (options.patience, options.iterations, options.estimator) == (15, 250, "one_sided")


# ---------------------------------------------------------------------- the proxy


def test_the_proxy_by_hand():
    found = proxy(log(0.5, 0.2, 0.8, 0.4, 0.9), [2, 1, 2])
    first, second, third = math.sqrt(0.5 * 0.2), 0.8, math.sqrt(0.4 * 0.9)
    confidence = (first + second + third) / 3
    robustness = 0.2 + 0.4 * (0.4 - 0.2)  # at rank 0.1 * 4 of 0.2, 0.4, 0.5, 0.8, 0.9
    gain = (second - first) / 2  # the fall after it counts as 0
    assert found.tolist() == [pytest.approx(0.6 * confidence + 0.3 * robustness + 0.1 * gain)]


def test_one_demonstration_has_no_gain():
    assert proxy(log(0.25, 0.25), [2]).item() == pytest.approx(0.9 * 0.25)


def test_the_proxy_of_every_row_is_its_own():
    rows = torch.rand(4, 6, generator=torch.Generator().manual_seed(0)).log()
    alone = torch.cat([proxy(row[None], [1, 2, 3]) for row in rows])
    assert torch.allclose(proxy(rows, [1, 2, 3]), alone)
    assert ((alone > 0) & (alone < 1)).all()


def test_the_proxy_of_a_broken_row_is_no_number():
    found = proxy(torch.tensor([[math.nan, -1.0], [-1.0, -1.0]]), [1, 1])
    assert found.isnan().tolist() == [True, False]


# ---------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("text", "label", "end", "expected"),
    [
        (FEW_SHOT, "Label:", "\n", ["clean", "in the other"]),
        # the last one has no end
        ("Label:a\nLabel:  b  \nLabel: \n Label: c", "Label:", "\n", ["a", "b"]),
        ("red => warm; blue => cold; green =>", "=>", ";", ["warm", "cold"]),
        ("Output:\n x\n y\n\nInput: z\nOutput:", "Output:", "\n\nInput:", ["x\n y"]),
        ("what is the label of this?\n", "Label:", "\n", []),
        ("", "Label:", "\n", []),
    ],
)
def test_labels_are_found_between_their_delimiters(text, label, end, expected):
    assert [text[a:b] for a, b in find_labels(text, label, end)] == expected


def labels_of(backend, content, **options):
    async def main():
        messages = [
            Message("system", "Label: x\n"),
            Message("user", content),
            Message("assistant", "Label: y\n"),
        ]
        text, spans = await backend.locate(messages)
        prompt = await backend.render(messages)
        assert len(spans) == len(prompt)
        return prompt, label_tokens(find_labels(text, **options), spans)

    return run(main())


@pytest.mark.parametrize(
    "content",
    [FEW_SHOT, "🎉\nLabel: 🎉 the kettle\nLabel:", "<|end|>\nLabel: clean<|user|> the\nLabel:"],
)
def test_the_tokens_of_labels_are_those_that_overlap_them(tiny, tokenizer, content):
    prompt, labels = labels_of(tiny, content, label="Label:", end="\n")
    found = [tokenizer.decode([prompt.ids[i] for i in positions]).strip() for positions in labels]
    assert (
        found
        == {"I": ["clean", "in the other"], "🎉": ["🎉 the kettle"], "<": ["clean  the"]}[
            content[0]
        ]
    )
    assert all(i in prompt.soft_positions for positions in labels for i in positions)


def test_a_label_at_the_first_position_loses_its_first_token():
    spans = [(0, 5), (5, 8), (8, 9), (9, 12)]
    assert label_tokens([(3, 8), (9, 12)], spans) == [[1], [3]]
    assert label_tokens([(3, 5), (9, 12)], spans) == [[3]]  # nothing is left of it


@pytest.mark.parametrize(
    ("template", "expected"),
    [(None, [1, 2]), ("{% for m in messages %}{{ m['content'] }}{% endfor %}", [1])],
)
def test_a_label_in_the_first_token_is_scored_if_the_template_stands_before_it(
    tokenizer, template, expected
):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template or tokenizer.chat_template
    text, spans = locate(tokenizer, [Message("user", "the kettle\nthe")])
    assert label_tokens(find_labels(text, "t", "\n"), spans) == [expected]  # "the" is one token


# ---------------------------------------------------------------------- log-probabilities inside a
# prompt


def test_token_log_probs_are_those_of_the_model(tiny, model):
    assert isinstance(tiny, ExposesLogProbs)
    prompt, labels = labels_of(tiny, FEW_SHOT, label="Label:", end="\n")
    positions = [i for label in labels for i in label]
    rows = run(tiny.embed(prompt.soft_ids))
    moved = rows + 0.1 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(0))
    found = run(tiny.token_log_probs(prompt, [rows, moved], positions))
    for values, soft in zip(found, (rows, moved), strict=True):
        embeds = model.get_input_embeddings()(torch.tensor([prompt.ids])).detach().clone()
        embeds[0, list(prompt.soft_positions)] = soft
        with torch.no_grad():
            log_probs = model(inputs_embeds=embeds).logits[0].log_softmax(-1)
        by_hand = [log_probs[i - 1, prompt.ids[i]].item() for i in positions]
        assert values.tolist() == pytest.approx(by_hand, abs=1e-4)
        assert proxy(values[None], [len(label) for label in labels]).item() == pytest.approx(
            proxy(torch.tensor([by_hand]), [len(label) for label in labels]).item(), rel=1e-3
        )
    assert not torch.allclose(found[0], found[1])


def test_token_log_probs_in_small_batches(tiny, tiny_model):
    small = TransformersBackend(
        TransformersOptions(model=str(tiny_model), device="cpu", dtype="float32", batch_size=2)
    )
    prompt, [label, _] = labels_of(tiny, FEW_SHOT, label="Label:", end="\n")
    rows = run(tiny.embed(prompt.soft_ids))
    rows = [rows + 0.01 * k for k in range(5)]
    small, large = (run(b.token_log_probs(prompt, rows, label)) for b in (small, tiny))
    assert small.shape == (5, len(label))
    assert torch.allclose(small, large, atol=1e-4)


def test_token_log_probs_refuse_rows_of_another_shape(tiny):
    prompt, _ = labels_of(tiny, FEW_SHOT, label="Label:", end="\n")
    with pytest.raises(ModelError, match="soft embeddings have shape"):
        run(tiny.token_log_probs(prompt, [torch.zeros(1, 32)], [1]))


# ---------------------------------------------------------------------- the search


@pytest.mark.parametrize("content", ["the kettle is clean", "Input: a kettle\nLabel:"])
def test_without_demonstrations_nothing_is_proposed(content):
    backend = Scripted()
    assert steer(task(backend, content)) == []
    assert (backend.asked, backend.calls) == ([], [])


def test_a_prompt_below_the_gate_is_left_alone():
    backend = Scripted(lambda _: 0.1)  # f = 0.09 for equal probabilities of 0.1
    assert steer(task(backend)) == []
    assert len(backend.asked) == 1
    assert len(steer(task(Scripted(lambda _: 0.1)), gate=0.08)) == 1


@pytest.mark.parametrize(("estimator", "points"), [("one_sided", 17), ("symmetric", 16)])
def test_only_rows_up_to_the_last_label_are_probed_and_moved(estimator, points):
    backend = Scripted()
    steer(task(backend), estimator=estimator, iterations=6, every=6, step=0.3)
    words = FEW_SHOT.split()
    after = words.index("other") + 1
    [final] = backend.rows
    for asked in (*backend.asked, final[None]):
        assert torch.equal(asked[:, after:], torch.ones(len(asked), len(words) - after, HIDDEN))
    assert {len(asked) for asked in backend.asked} == {points}
    assert (backend.asked[0][1:, :after] != 1).all()
    assert (final[:after] != 1).all()


def test_candidates_come_along_the_path_and_at_its_end():
    backend = Scripted()
    job = task(backend)
    rounds = steer(job, iterations=25, every=10, step=0.3, probe=0.01)
    values = [float(c.origin.removeprefix("proxy ")) for [c] in rounds]
    assert len(values) == 3
    assert values == sorted(values)
    assert values[-1] > values[0]
    assert (job.usage.generations, job.usage.moderation_calls, len(backend.asked)) == (3, 3, 25)
    assert all(
        vars(c[0]) == vars(job.base.with_(prompt=c[0].prompt, soft_embeds=c[0].soft_embeds))
        for c in backend.calls
    )


def test_a_point_is_proposed_once_and_patience_ends_the_search():
    backend = Scripted(lambda _: 0.5)
    rounds = steer(task(backend), every=2)
    assert [c.origin for [c] in rounds] == ["proxy 0.450"]
    assert len(backend.asked) == 1 + 15
    assert len(steer(task(Scripted(lambda _: 0.5)), patience=0, iterations=30, every=40)) == 1


def test_steps_in_the_noise_end_the_search():
    backend = Scripted(lambda _: 0.5)
    steer(task(backend), signal=1.0, patience=4)
    assert len(backend.asked) == 4


def test_a_model_that_overflows_ends_the_search_with_the_best_point():
    calls = []

    def value(total):
        calls.append(total)
        return math.nan if len(calls) > 3 * 17 else 0.5

    backend = Scripted(value)
    assert len(steer(task(backend), patience=0)) == 1
    assert len(backend.asked) == 4
    assert torch.isfinite(backend.rows[0]).all()


def test_a_step_of_zero_is_plain_generation(tiny):
    job = task(tiny)
    [plain] = run(tiny.generate([job.base]))
    [[candidate]] = steer(job, step=0.0, gate=0.0, iterations=3)
    assert candidate.text == plain.text


def test_the_seed_decides(tiny):
    def rows(seed):
        taken = []

        class Keeping(TransformersBackend):
            async def generate(self, requests):
                taken.extend(r.soft_embeds for r in requests)
                return await super().generate(requests)

        steer(task(Keeping(tiny.options), seed=seed), gate=0.0, iterations=4, step=0.3)
        return taken[-1]

    assert torch.equal(rows(1), rows(1))
    assert not torch.equal(rows(1), rows(2))


@pytest.mark.parametrize("estimator", ["one_sided", "symmetric"])
def test_the_embedded_model_grows_surer_of_its_labels(estimator):
    backend = TransformersBackend(TransformersOptions(device="cpu"))
    rounds = steer(
        task(backend, FINE),
        estimator=estimator,
        gate=0.0,
        probe=0.01,
        step=0.3,
        clip=None,
        iterations=12,
        every=1,
    )
    values = [float(c.origin.removeprefix("proxy ")) for [c] in rounds]
    assert values[0] < 0.05
    assert values[-1] > 0.2
