"""The world of the embedded model: what it writes is what it judges, and what is held out stays
out."""

import itertools
import random
import re
from dataclasses import replace

import pytest

from ttsa_guard.embedded.world import World
from ttsa_guard.text import split_sentences

WORLD = World.load()
REQUESTS = [
    ("benign", None),
    ("benign", "content"),
    ("benign", "friendly"),
    ("benign", "tone"),
    ("unsafe", None),
    ("unsafe", "tone"),
    ("unsafe", "friendly"),
    ("unsafe", "content"),
]
DECENT = (
    {"open", "step", "close"},
    {"refuse", "reason", "refuse_close"},
    {"redirect", "help", "redirect_close"},
)


def drawn(request, wrapper, split, n=150, **changes):
    """(case, answer) pairs."""
    rng = random.Random(f"{request}/{wrapper}/{split}")
    for _ in range(n):
        case = replace(WORLD.case(rng, request, wrapper, split, "unseen"), **changes)
        yield case, WORLD.answer(rng, case)


def case_of(request="benign", wrapper=None, **changes):
    """A case, and a decent answer to it (or a failing one: rate=1)."""
    return next(drawn(request, wrapper, "seen", **changes))


# ---------------------------------------------------------------------- judging what it writes


@pytest.mark.parametrize("split", ["seen", "unseen"])
@pytest.mark.parametrize(("request_", "wrapper"), REQUESTS)
def test_decent_answers_are_judged_decent(request_, wrapper, split):
    for case, answer in drawn(request_, wrapper, split, rate=0.0):
        found = WORLD.judge(case, answer)
        assert found.good, answer
        assert any(set(found.kinds) <= kinds for kinds in DECENT), answer
        declined = "refuse" in found.kinds
        assert (found.refusal, found.helpful) == (declined, not declined), answer


@pytest.mark.parametrize("split", ["seen", "unseen"])
def test_complying_answers_are_judged_unsafe(split):
    for case, answer in drawn("unsafe", "content", split, rate=1.0):
        found = WORLD.judge(case, answer)
        assert set(found.kinds) <= {"comply_open", "comply", "comply_close"}, answer
        assert (found.safe, found.fluent, found.on_topic, found.helpful, found.refusal) == (
            False,
            True,
            True,
            False,
            False,
        )


@pytest.mark.parametrize("split", ["seen", "unseen"])
def test_abusive_answers_are_judged_unsafe(split):
    timing = set()
    for case, answer in drawn("benign", "tone", split, rate=1.0):
        found = WORLD.judge(case, answer)
        assert (found.safe, found.fluent, found.good, found.helpful) == (
            False,
            True,
            False,
            False,
        ), answer
        timing.add((case.when, found.kinds[0]))
        if {"step"} & set(found.kinds):
            named = re.search(rf"\b{re.escape(case.topic.answered.removeprefix('the '))}\b", answer)
            assert found.on_topic is bool(named), answer
    assert timing >= {("early", "abuse"), ("late", "open")}


def test_every_sentence_has_one_category():
    """Otherwise a good answer could be taken for one to another question."""
    owners = {}
    for kind in ("benign", "unsafe"):
        for category, spec in WORLD.texts[kind].items():
            for sentence in [
                *spec["steps"],
                *spec.get("help", ()),
                *filter(None, [spec.get("reason")]),
            ]:
                owners.setdefault(sentence, set()).add(category)
    assert [s for s, found in owners.items() if len(found) > 1] == []


def test_failing_wrappers_fail_at_their_rate():
    rng = random.Random(0)
    cases = [WORLD.case(rng, "unsafe", "content", "seen", "seen") for _ in range(1500)]
    gave_in = sum(not WORLD.judge(c, WORLD.answer(rng, c)).safe for c in cases)
    assert gave_in / len(cases) == pytest.approx(sum(c.rate for c in cases) / len(cases), abs=0.03)
    assert {c.failure for c in cases} == {"content"}


@pytest.mark.parametrize(
    ("request_", "wrapper"),
    sorted({*REQUESTS} - {("benign", "tone"), ("unsafe", "content")}, key=str),
)
def test_other_prompts_never_fail(request_, wrapper):
    assert {(c.rate, c.failure) for c, _ in drawn(request_, wrapper, "seen")} == {(0.0, None)}


# ---------------------------------------------------------------------- judging what it does not
# write


def test_an_answer_to_another_question_is_off_topic():
    pairs = list(drawn("benign", None, "seen", 40)) + list(drawn("unsafe", None, "seen", 40))
    for (case, _), (other, answer) in itertools.permutations(pairs[::5], 2):
        if case.topic.answered != other.topic.answered:
            found = WORLD.judge(case, answer)
            assert found.fluent
            assert not found.on_topic, (case, answer)


def test_one_step_of_another_category_is_off_topic():
    case, answer = case_of()
    others = [
        spec["steps"] for name, spec in WORLD.texts["benign"].items() if name != case.topic.category
    ]
    foreign = next(step for steps in others for step in steps if "{" not in step)
    assert WORLD.judge(case, answer).good
    assert not WORLD.judge(case, f"{answer} {foreign}").on_topic


def test_an_answer_that_names_no_object_is_not_on_topic():
    case, _ = case_of()
    assert not WORLD.judge(case, "I hope that this helps you.").on_topic


@pytest.mark.parametrize("request_", ["benign", "unsafe"])
def test_a_broken_sentence_is_found_wherever_it_stands(request_):
    for case, answer in drawn(request_, None, "seen", 20):
        words = answer.split()
        for i in range(0, len(words) - 1, 3):
            swapped = " ".join([*words[:i], words[i + 1], words[i], *words[i + 2 :]])
            if (
                words[i] != words[i + 1]
                and words[i] not in case.topic.answered
                and words[i + 1] not in case.topic.answered
            ):
                assert not WORLD.judge(case, swapped).good, swapped


@pytest.mark.parametrize("request_", ["benign", "unsafe"])
def test_a_truncated_answer_is_not_fluent(request_):
    for case, answer in drawn(request_, None, "seen", 20):
        for end in range(len(answer)):
            whole = answer[:end].rstrip().endswith((".", "!", "?"))  # cut between two sentences
            assert WORLD.judge(case, answer[:end]).fluent is whole, answer[:end]


@pytest.mark.parametrize("nothing", ["", " ", "...", "?", "the the the"])
def test_nothing_is_not_an_answer(nothing):
    found = WORLD.judge(case_of()[0], nothing)
    assert not found.good
    assert not found.helpful


def test_one_complying_sentence_spoils_a_decent_answer():
    case, decent = case_of("unsafe", "content", rate=0.0)
    complied = case_of("unsafe", "content", rate=1.0)[1]
    spec = WORLD.texts["unsafe"][case.topic.category]
    for sentence in [
        *spec["steps"],
        *WORLD.texts["unsafe_answers"]["comply_close"],
        split_sentences(complied)[0],
    ]:
        for mixed in (f"{decent} {sentence}", f"{sentence} {decent}"):
            found = WORLD.judge(case, mixed)
            assert not found.safe, mixed
            assert not found.helpful, mixed


def test_late_abuse_spoils_a_decent_answer():
    case, decent = case_of()
    abuse = WORLD.texts["abuse"]
    for template in [*abuse["late"], *abuse["close"]]:
        insult = template.format(adj=abuse["adjectives"][0], ins=abuse["words"][0])
        found = WORLD.judge(case, f"{decent} {insult}")
        assert found.kinds[-1] == "abuse", insult
        assert (found.safe, found.good, found.helpful) == (False, False, False)


def test_one_step_is_not_enough_to_be_helpful():
    case, answer = case_of()
    opening, first, second, *_ = split_sentences(answer)
    assert not WORLD.judge(case, f"{opening} {first}").helpful
    assert WORLD.judge(case, f"{opening} {first} {second}").helpful


# ---------------------------------------------------------------------- cases


@pytest.mark.parametrize(("request_", "wrapper"), REQUESTS)
def test_cases_are_distinct_deterministic_and_of_the_kind_asked_for(request_, wrapper):
    cases = WORLD.cases(request_, wrapper, 120, seed=3)
    assert cases == World.load().cases(request_, wrapper, 120, seed=3)
    assert len({c.messages[-1] for c in cases}) == 120
    assert {c.topic.unsafe for c in cases} == {request_ == "unsafe"}
    families = set(WORLD.texts["wrappers"][wrapper]) if wrapper else {None}
    assert {c.wrapper for c in cases} == families
    assert sum(c.topic.seen for c in cases) == 60
    other = WORLD.cases(request_, wrapper, 120, seed=4)
    assert len({c.messages for c in other} & {c.messages for c in cases}) < 40


def test_the_topic_of_a_case_is_from_its_split():
    for kind in ("benign", "unsafe"):
        for case in WORLD.cases(kind, None, 100):
            held_out = WORLD.objects(kind, case.topic.category, "unseen")
            assert any(o in case.topic.asked for o in held_out) or case.topic.seen


# ---------------------------------------------------------------------- held out


@pytest.fixture(scope="module")
def training():
    stream = WORLD.conversations(11)
    return "\n".join(content for _ in range(4000) for _, content in next(stream))


def pattern(template):
    """Matches what a template may become."""
    return re.compile(re.sub(r"\\\{\w+\\\}", r"[^.?!\\n]+?", re.escape(template)))


def wrapper_sentences(split):
    parts = [
        p
        for kind in WORLD.texts["wrappers"].values()
        for family in kind.values()
        for p in family["parts"]
    ]
    return {s for part in parts for s in part[split]} - {"{q}"}


def test_training_conversations_are_deterministic_and_end_with_an_answer():
    first, again, other = (
        list(itertools.islice(WORLD.conversations(seed), 50)) for seed in (1, 1, 2)
    )
    assert first == again != other
    for conversation in first:
        assert [role for role, _ in conversation if role != "system"] == ["user", "assistant"] * (
            len(conversation) // 2
        )


def test_the_search_for_held_out_texts_would_find_them(training):
    """The tests below are worth something only if the same search finds what is trained on."""
    for template in [*WORLD.texts["questions"]["seen"], *wrapper_sentences("seen")]:
        assert pattern(template).search(training), template
    for name in WORLD.texts["names"]["seen"]:
        assert re.search(rf"\b{name}\b", training), name
    assert len(asked_about("seen", training)) > 250


def test_unseen_wordings_are_never_trained_on(training):
    for template in WORLD.texts["questions"]["unseen"]:
        assert not pattern(template).search(training), template


def test_unseen_wrappers_are_never_trained_on(training):
    for template in wrapper_sentences("unseen"):
        assert not pattern(template).search(training), template


def test_unseen_personas_are_never_trained_on(training):
    for name in WORLD.texts["names"]["unseen"]:
        assert not re.search(rf"\b{name}\b", training), name


def asked_about(split, text):
    """(category, object) pairs of requests in `text`, whatever the determiner."""
    found = set()
    for kind, category in [("benign", c) for c in WORLD.texts["benign"]] + [
        ("unsafe", c) for c in WORLD.texts["unsafe"]
    ]:
        spec, nouns = (
            WORLD.texts[kind][category],
            "|".join(map(re.escape, WORLD.objects(kind, category, split))),
        )
        request = rf"\b(?:{spec['verb']}|{spec['gerund']}) (?:\w+ ){{0,2}}({nouns})\b(?! \w)"
        found |= {(category, noun) for noun in re.findall(request, text)}
    return found


def test_unseen_objects_are_never_trained_on(training):
    assert asked_about("unseen", training) == set()
