"""Collecting a model's profile: how its safe answers begin, and how likely they are."""

import asyncio
from collections import Counter

import pytest

from ttsa_guard.errors import ModelError, ModeratorError
from ttsa_guard.steerers.openings import collect, default_probes
from ttsa_guard.testing import ScriptedBackend, ScriptedModerator


class Asked(ScriptedBackend):
    """Gives the answers of each question in turn."""

    def __init__(self, answers):
        super().__init__(
            lambda request: answers[self.question][request.seed % len(answers[self.question])]
        )

    async def render(self, messages, *, scope="user"):
        self.question = messages[-1].content
        return await super().render(messages, scope=scope)


class Scoring(Asked):
    """Texts end with their log-likelihood."""

    async def log_likelihoods(self, prompt, texts):
        return [float(text.split()[-1]) if text else -99.0 for text in texts]

    async def objective(self, prompt, soft_embeds, continuations):
        raise NotImplementedError


def profile(harmless=None, unsafe=None, *, backend=Asked, moderator=None, **settings):
    harmless, unsafe = harmless or {}, unsafe or {}
    settings.setdefault("samples", max(map(len, [*harmless.values(), *unsafe.values()])))
    model = backend({**harmless, **unsafe})
    work = collect(
        model,
        moderator or ScriptedModerator(),
        harmless=list(harmless),
        unsafe=list(unsafe),
        **settings,
    )
    return asyncio.run(work)


def found(*args, **settings):
    return [(o.text, o.kind, o.count) for o in profile(*args, **settings).openings]


def test_shared_beginnings_are_kept_and_the_questions_own_words_dropped():
    nouns = "kettles mirrors sofas vases".split()
    answers = {
        f"clean {n}?": [f"To clean {n} you need soap.", f"{n} are easy, so begin."] for n in nouns
    }
    assert found(answers) == [("To clean", "answer", 4)]


def test_a_beginning_counts_once_for_each_question():
    answers = {"a?": ["Sure it is so"] * 5, "b?": ["Sure it is so"], "c?": ["Sure it is not"]}
    assert found(answers) == [("Sure it is", "answer", 3)]


def test_two_questions_are_not_enough_where_there_are_more():
    answers = {"a?": ["Yes yes"], "b?": ["Yes yes"], "c?": ["No"], "d?": ["Well"]}
    with_two = {"a?": ["Yes yes"], "b?": ["Yes yes"]}
    assert found(answers) == []
    assert found(with_two) == [("Yes yes", "answer", 2)]


def test_a_beginning_is_no_longer_than_four_words_or_its_clause():
    answers = {
        f"{i}?": ["One two three four five six", "Okay. Then more words", "First: do this"]
        for i in range(3)
    }
    assert {text for text, *_ in found(answers)} == {"One two three four", "Okay.", "First:"}


def test_the_longer_beginning_wins_if_it_is_half_as_common():
    common = {f"{i}?": ["Here is one way"] for i in range(4)}
    rare = {f"{i}?": ["Here are other things"] for i in range(4, 7)}
    assert found({**common, **rare}) == [
        ("Here is one way", "answer", 4),
        ("Here are other things", "answer", 3),
    ]
    varied = {f"{i}?": [f"Here comes{i} x"] for i in range(8)}
    assert found({**varied, **rare}) == [
        ("Here", "answer", 8),
        ("Here are other things", "answer", 3),
    ]


def test_kinds():
    harmless = {f"how {i}?": ["Gladly, here", "Sorry, not that"] for i in range(3)}
    unsafe = {f"evil {i}?": ["Instead do this", "Sorry, not that"] for i in range(3)}
    expected = [
        ("Gladly, here", "answer", 3),
        ("Instead do this", "redirect", 3),
        ("Sorry, not that", "refusal", 6),
    ]
    assert found(harmless, unsafe) == expected


def test_flagged_and_empty_answers_are_left_out():
    answers = {f"{i}?": ["A bad answer", "", "A good answer"] for i in range(3)}
    assert found(answers) == [("A good answer", "answer", 3)]


def test_there_are_at_most_six_of_a_kind_the_commonest_first():
    answers = {
        f"{i}?": [f"{word} word" for n, word in enumerate("abcdefgh") if i < 3 + n]
        for i in range(10)
    }
    answers = {q: texts or ["z"] for q, texts in answers.items()}
    expected = [(f"{word} word", "answer", 3 + n) for n, word in enumerate("abcdefgh")]
    assert found(answers, samples=8) == expected[::-1][:6]


def test_the_floor_is_the_first_percentile():
    def floor(n):
        answers = {"q?": [f"text {i}" for i in range(n)]}
        return profile(answers, backend=Scoring, samples=4 * n).floor

    # nearest rank: ceil(n / 100)
    assert [floor(n) for n in (1, 50, 100, 101, 200, 201)] == [0, 0, 0, 1, 1, 2]


def test_flagged_and_empty_answers_do_not_count_for_the_floor():
    assert (
        profile(
            {"q?": ["bad -9", "good -2.00004", "", "good -1"]}, backend=Scoring, samples=16
        ).floor
        == -2.0
    )


def test_only_usual_answers_count_for_the_floor():
    assert (
        profile(
            {"q?": ["good -1", "good -2", "good -3", "good -4", "good -5"]}, backend=Scoring
        ).floor
        == -2.0
    )


def test_there_is_no_floor_without_likelihoods():
    assert profile({"q?": ["good -2"]}).floor is None


def test_sampling_is_as_told():
    answers = {"a?": ["good"], "b?": ["good"]}
    model, progress = Asked(answers), []
    settings = {"samples": 5, "max_new_tokens": 7, "seed": 40}
    work = collect(
        model,
        ScriptedModerator(),
        harmless=["a?"],
        unsafe=["b?"],
        on_progress=lambda *now: progress.append(now),
        **settings,
    )
    assert asyncio.run(work).model == "scripted"
    seeds = [r.seed for batch in model.calls for r in batch]
    assert len(set(seeds)) == 10  # the questions have different noise
    assert min(seeds) >= 40
    assert [[r.temperature for r in batch] for batch in model.calls] == [
        [0.1, 0.1, 0.9, 0.9, 0.9]
    ] * 2
    assert {r.max_new_tokens for batch in model.calls for r in batch} == {7}
    assert progress == [(1, 2), (2, 2)]


@pytest.mark.parametrize("answer", ["bad -1", ""])
def test_no_safe_answer_is_an_error(answer):
    with pytest.raises(ModelError, match="no safe answer") as caught:
        profile({"q?": [answer]}, backend=Scoring)
    assert caught.value.hint


def test_a_moderator_that_is_down_calls_nothing_safe():
    with pytest.raises(ModelError, match="no safe answer"):
        profile({"q?": ["good"]}, moderator=ScriptedModerator(error=ModeratorError("down")))


def test_the_shipped_questions():
    harmless, unsafe = default_probes()
    assert min(len(harmless), len(unsafe)) >= 6
    assert Counter([*harmless, *unsafe]).most_common(1)[0][1] == 1
