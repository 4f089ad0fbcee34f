"""The study of LLMdoctor: its mathematics, data and doctors, with a tiny random model."""

import asyncio
import csv
import gzip
import itertools
import json
import math
from pathlib import Path

import pytest
import torch

from research.llmdoctor import doctor, faces, flow, report
from research.llmdoctor.arms import distinct
from research.llmdoctor.data import Choice, Reader, public_choices, world_choices
from research.llmdoctor.decoding import Contrast
from research.llmdoctor.rewards import importance, rewards
from research.llmdoctor.scoring import token_log_probs
from ttsa_guard.backends.local.controlled import fingerprint
from ttsa_guard.embedded.world import World
from ttsa_guard.messages import GenerationRequest, Message
from ttsa_guard.steerers.prosocial import training
from ttsa_guard.steerers.prosocial.harm_vector import HarmVector
from ttsa_guard.steerers.prosocial.preferences import EQUAL
from ttsa_guard.steerers.prosocial.product import Product
from ttsa_guard.steerers.prosocial.training import Plan

CHOICES = [
    Choice((Message("user", asked),), better, worse, "here")
    for asked, better, worse in (
        ("is the kettle clean?", "the kettle is clean", "the kitchen"),
        ("what is in the other kitchen", "a kettle", "the other the other"),
    )
]


# ---------------------------------------------------------------------- rewards

RATIOS = torch.tensor([-1.0, -2.0, -1.5]) - torch.tensor([-1.2, -1.8, -2.3])  # 0.2, -0.2, 0.8
EXPECTED = [math.tanh(0.5), math.tanh(0.5), math.tanh(2.0)]  # the mean of |.| is 0.4


def test_rewards_are_those_of_the_equations():
    assert importance(RATIOS).tolist() == pytest.approx(EXPECTED)
    assert importance(RATIOS, tau=2.0)[2].item() == pytest.approx(math.tanh(1.0))
    assert rewards(RATIOS, better=True, theta=0.5).tolist() == pytest.approx([0, 0, EXPECTED[2]])
    assert rewards(RATIOS, better=False, theta=0.0).tolist() == pytest.approx(
        [-s for s in EXPECTED]
    )


def test_which_face_likes_a_token_does_not_count():
    """The label alone gives the direction, so faces that are always wrong reward just the same."""
    assert torch.equal(rewards(RATIOS, better=True), rewards(-RATIOS, better=True))


# ---------------------------------------------------------------------- the flow


def double_sum(log_q, log_v, log_probs):
    """The loss as it is printed."""
    f = log_q + log_v
    return sum(
        (f[n] - f[m] - log_probs[m:n].sum()) ** 2
        for m, n in itertools.combinations(range(len(f)), 2)
    )


def drawn(*size, seed=0):
    return torch.randn(*size, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tokens", [1, 2, 17])
def test_the_closed_form_is_the_double_sum(tokens):
    log_q, log_v, log_probs = drawn(tokens + 1), drawn(tokens + 1, seed=1), -drawn(tokens).abs()
    found = flow.balance(flow.potentials(log_q, log_v, log_probs))
    assert found.item() == pytest.approx(double_sum(log_q, log_v, log_probs).item())


@pytest.mark.parametrize("policy", [0, 1, 2])
def test_the_printed_loss_is_zero_for_any_policy(policy):
    """So it does not determine the doctor: V takes up whatever the policy is."""
    log_q = flow.log_scores(rewards(drawn(9), better=True), 1.0)
    log_probs = drawn(9, 5, seed=policy).log_softmax(-1)[:, 0]
    log_v = torch.cat([log_probs.new_zeros(1), log_probs.cumsum(0)]) - log_q + 3.0
    assert double_sum(log_q, log_v, log_probs).item() == pytest.approx(0, abs=1e-20)


def test_one_answer_alone_says_nothing_of_the_policy_even_with_a_known_end():
    log_q = flow.log_scores(drawn(9), 1.0)
    for policy in (0, 1):
        log_ratios = drawn(9, seed=policy)
        said = torch.cat([log_ratios.new_zeros(1), log_ratios.cumsum(0)])
        log_v = log_q[-1] - said[-1] - log_q + said
        assert log_v[-1] == 0
        assert flow.balance(flow.potentials(log_q, log_v, log_ratios)).item() < 1e-20


DEPTH, WORDS = 3, 2
ANSWERS = [*itertools.product(range(WORDS), repeat=DEPTH)]


def solution(reference, given, kappa):
    """pi and log V on the tree of all answers, from the last token to the first.

    Args:
        reference: log pi_ref of the words after each prefix, [words].
        given: the reward of each prefix's last word.
    """
    log_v = dict.fromkeys(ANSWERS, torch.zeros((), dtype=torch.double))
    policy = {}
    for size in range(DEPTH - 1, -1, -1):
        for prefix in itertools.product(range(WORDS), repeat=size):
            longer = [(*prefix, word) for word in range(WORDS)]
            logits = reference[prefix] + torch.stack([kappa * given[p] + log_v[p] for p in longer])
            log_v[prefix] = logits.logsumexp(0)
            policy[prefix] = logits.log_softmax(0)
    return policy, log_v


def path_loss(answer, policy, log_v, reference, given, kappa):
    prefixes = [answer[:n] for n in range(DEPTH + 1)]
    log_q = flow.log_scores(torch.stack([given[p] for p in prefixes[1:]]), kappa)
    log_ratios = torch.stack(
        [policy[p][word] - reference[p][word] for p, word in zip(prefixes, answer, strict=False)]
    )
    values = torch.stack([log_v[p] for p in prefixes])
    return flow.balance(flow.potentials(log_q, values, log_ratios)).item()


def answer_probability(answer, policy):
    return sum(policy[answer[:n]][word].item() for n, word in enumerate(answer))


@pytest.fixture
def tree():
    prefixes = [p for n in range(DEPTH + 1) for p in itertools.product(range(WORDS), repeat=n)]
    reference = {p: drawn(WORDS, seed=i).log_softmax(0) for i, p in enumerate(prefixes)}
    given = {p: drawn(1, seed=100 + i)[0] for i, p in enumerate(prefixes)}
    return reference, given


def test_the_relative_loss_is_solved_by_the_tilted_reference(tree):
    reference, given = tree
    policy, log_v = solution(reference, given, 1.5)
    assert all(path_loss(a, policy, log_v, reference, given, 1.5) < 1e-20 for a in ANSWERS)
    tilted = torch.tensor(
        [
            answer_probability(a, reference)
            + 1.5 * sum(given[a[:n]].item() for n in range(1, DEPTH + 1))
            for a in ANSWERS
        ]
    )
    found = torch.tensor([answer_probability(a, policy) for a in ANSWERS])
    assert torch.allclose(found, tilted.log_softmax(0), atol=1e-6)
    assert path_loss(ANSWERS[0], reference, log_v, reference, given, 1.5) > 0.01


def test_to_move_reward_between_the_tokens_of_answers_changes_no_policy(tree):
    """So the weights of tokens reach the doctor only through the sum of each answer."""
    reference, given = tree
    moved = {
        p: sum(given[p[:n]] for n in range(1, DEPTH + 1)) if len(p) == DEPTH else 0 * given[p]
        for p in given
    }
    first, value = solution(reference, given, 1.0)
    second, other = solution(reference, moved, 1.0)
    assert all(torch.allclose(first[p], second[p]) for p in first)
    assert not torch.allclose(value[(0,)], other[(0,)])


def test_the_hinge_ends_at_its_margin():
    values = torch.tensor([0.3, 0.0]), torch.tensor([0.1, 0.0])
    assert flow.hinge(*values, 0.1).tolist() == pytest.approx([0.0, 0.1])


# ---------------------------------------------------------------------- faces


def test_the_better_answer_has_to_have_more():
    values = [
        (torch.tensor([2.0]), torch.tensor([1.0, 1.5])),  # more by the mean, less by the sum
        (torch.tensor([1.0, 3.0]), torch.tensor([2.0])),  # alike, and more
    ]
    assert faces.correct(values, "mean") == [1.0, 0.5]
    assert faces.correct(values, "sum") == [0.0, 1.0]


def test_only_tokens_above_theta_count():
    values = torch.tensor([0.2, -0.2, 0.8])
    assert faces.preferences(values, 0.5) == pytest.approx({"mean": 0.8, "sum": 0.8})
    assert faces.kept([(values, values)]) == pytest.approx(1 / 3)


@pytest.fixture
def loaded(tiny_model):
    model, encode = training.load(str(tiny_model), "cpu")
    return model.eval(), Reader(encode)


@pytest.mark.parametrize("system", [None, "the other kitchen"])
def test_log_probabilities_are_those_of_whole_texts(loaded, system):
    model, reader = loaded
    examples = [e for pair in reader.read(CHOICES * 6, system) for e in pair]
    found = token_log_probs(model, examples)
    assert [len(f) for f in found] == [len(e.answer) for e in examples]
    expected = training.log_likelihoods(model, examples)
    assert torch.allclose(torch.stack([f.sum() for f in found]), expected, atol=1e-4)


def test_faces_differ_by_prompt_and_by_weights(loaded, harm):
    model, reader = loaded
    same = faces.by_prompts(model, reader, CHOICES, faces.Wording("the", "the"))
    assert all(not both.any() for pair in same for both in pair)
    other = faces.by_prompts(model, reader, CHOICES, faces.Wording("the", "a kettle"))
    assert other[0][0].any()
    before = [p.clone() for p in model.parameters()]
    pairs = reader.read(CHOICES)
    assert faces.by_weights(model, pairs, harm, 1.0)[0][0].any()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    ahead, back = (faces.by_weights(model, pairs, harm, c)[0][0] for c in (0.5, -0.5))
    assert torch.equal(ahead, -back)


def test_faces_by_weights_differ_under_autocast_too(loaded, harm):
    """It keeps the weights in bfloat16 as it first saw them, and both faces were one."""
    model, reader = loaded
    with torch.autocast("cpu", torch.bfloat16):
        [(better, _), _] = faces.by_weights(model, reader.read(CHOICES), harm, 1.0)
    assert better.any()


# ---------------------------------------------------------------------- data


def test_the_better_answer_of_the_world_is_good_and_the_worse_is_not():
    world, n = World.load(), 4
    choices = world_choices(n, seed=3)
    cases = [c for kind in KINDS for c in world.cases(*kind, n, seed=3)]
    for choice, case in zip(choices, cases, strict=True):
        better, worse = (world.judge(case, a) for a in (choice.better, choice.worse))
        assert better.good
        assert not worse.safe


KINDS = [("unsafe", "content"), ("benign", "tone"), ("unsafe", None), ("benign", None)]


def test_public_pairs_are_read_and_safe_prompts_turn_the_sign(tmp_path):
    for folder in ("hh-rlhf", "just-eval/safety_scores", "xstest/model_completions"):
        (tmp_path / folder).mkdir(parents=True)
    start = "\n\nHuman: is it clean?\n\nAssistant:"
    lines = [
        {"chosen": f"{start} yes", "rejected": f"{start} no"},
        {"chosen": f"{start} yes\n\nHuman: why?\n\nAssistant: so", "rejected": f"{start} no"},
    ]
    (tmp_path / "hh-rlhf" / "harmless-base-test.jsonl.gz").write_bytes(
        gzip.compress("\n".join(map(json.dumps, lines)).encode())
    )
    scored = [
        {"input": asked, "output_cand": said, "parsed_result": {"safety": {"score": score}}}
        for asked, said, score in (("one", "good", "5"), ("one", "bad", "2"), ("two", "good", "5"))
    ]
    (tmp_path / "just-eval" / "safety_scores" / "a.json").write_text(json.dumps(scored))
    with (tmp_path / "xstest" / "model_completions" / "m.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "type", "completion", "final_label"])
        for kind in ("homonyms", "contrast_homonyms"):
            writer.writerow([kind, kind, "of course", "1_full_compliance"])
            writer.writerow([kind, kind, "no", "2_full_refusal"])
    found = {c.source: (c.better, c.worse) for c in public_choices(tmp_path)}
    assert found == {
        "HH-RLHF": ("yes", "no"),
        "just-eval": ("good", "bad"),
        "XSTest, safe": ("of course", "no"),
        "XSTest, unsafe": ("no", "of course"),
    }


def test_a_prompt_is_in_one_half():
    choices = world_choices(40, seed=3)
    halves = [c.half for c in choices]
    assert 0.35 < halves.count("test") / len(halves) < 0.65
    assert [Choice(c.messages, "a", "b", "c").half for c in choices] == halves


# ---------------------------------------------------------------------- doctors


@pytest.fixture
def harm(tiny_model):
    model, _ = training.load(str(tiny_model), "cpu")
    tuned, _ = training.load(str(tiny_model), "cpu")
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in tuned.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return HarmVector.difference(model, tuned, keep=0.5)


PLAN = Plan(steps=12, batch=2, peak=1e-2, warm_up=2, decay=0.0)


@pytest.fixture(params=["flow", "dpo"])
def trained(request, loaded, harm):
    """The lessons, and a doctor that had them."""
    model, reader = loaded
    pairs = reader.read(CHOICES)
    reference = faces.plain(model, pairs)
    given = doctor.by_faces(faces.by_weights(model, pairs, harm, 1.0), 0.0)
    lessons = doctor.lessons(pairs, reference, given)
    train, strength = (
        (doctor.by_flow, 2.0) if request.param == "flow" else (doctor.by_preference, 0.5)
    )
    return lessons, train(model, lessons, PLAN, strength, lambda *_: None)


def test_a_doctor_moves_toward_the_better_answers_and_the_patient_stays(loaded, trained):
    model, _ = loaded
    lessons, stored = trained
    assert fingerprint(model) == stored.base
    for lesson in lessons:
        with stored.on(model).attached(model):
            after = faces.plain(model, [lesson.pair])[0]
        better, worse = ((a - b).sum().item() for a, b in zip(after, lesson.reference, strict=True))
        assert better > worse


def test_beta_zero_is_the_patient_bit_for_bit(tiny, trained, harm):
    prompts = [asyncio.run(tiny.render(c.messages)) for c in CHOICES]
    asked = [
        GenerationRequest(p, temperature=1.0, max_new_tokens=12, seed=i)
        for i, p in enumerate(prompts)
    ]

    def texts(decoding):
        return [g.text for g in asyncio.run(tiny.generate_controlled(asked, decoding))]

    plain = [g.text for g in asyncio.run(tiny.generate(asked))]
    assert texts(Product(None, trained[1], 0.0, 0.0, EQUAL)) == plain
    assert texts(Contrast(harm, 1.0, 0.0)) == plain
    assert texts(Product(None, trained[1], 0.0, 20.0, EQUAL)) != plain
    assert texts(Contrast(harm, 1.0, 20.0)) != plain


def test_rewards_of_all_kinds_are_scaled_alike(loaded):
    model, reader = loaded
    pairs = reader.read(CHOICES)
    reference = faces.plain(model, pairs)
    for given in (doctor.by_label(reference), doctor.by_faces(reference, 0.0)):
        lessons = doctor.lessons(pairs, reference, given)
        sums = torch.stack([r.sum() for lesson in lessons for r in lesson.rewards])
        assert sums.abs().mean().item() == pytest.approx(1.0)
        assert sums.sign().tolist() == [1.0, -1.0] * len(lessons)


def test_distinct_counts_different_pairs_of_words():
    assert distinct(["a b c", "a b d"]) == pytest.approx(3 / 4)
    assert distinct(["a"]) == 0.0


RESULTS = Path(__file__).parents[2] / "research" / "results" / "llmdoctor"


def test_the_page_has_the_numbers_that_were_measured():
    page = (RESULTS / "README.md").read_text(encoding="utf-8")
    found = json.loads((RESULTS / "study.json").read_text(encoding="utf-8"))
    for part in ("world", "public"):
        assert report.faces(found[part]) in page
        assert report.wordings(found[part]) in page
    assert report.arms(found["arms"]) in page
