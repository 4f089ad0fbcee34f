"""The second opinion through its public names, on harmless texts and the vague made-up answers of
the embedded world."""

from __future__ import annotations

import asyncio
import random
import time
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from research import SHIPPED
from research.embedded import lite_domain
from research.embedded.second_opinion_data import digest, lite_world_rows, world_examples
from ttsa_guard.embedded.world import World
from ttsa_guard.errors import ModelError
from ttsa_guard.moderators.base import Moderator
from ttsa_guard.moderators.categories import HEADS
from ttsa_guard.moderators.second_opinion import (
    SecondOpinion,
    SecondOpinionOptions,
)
from ttsa_guard.moderators.second_opinion_network import SecondOpinionNetwork
from ttsa_guard.plugins import Plugins
from ttsa_guard.testing import check_moderator
from ttsa_guard.text import split_sentences
from ttsa_guard.verdict import Verdict

N = 200
BAD_KINDS = ("complied", "early", "late")
DECENT_KINDS = ("answered", "refused", "redirected")
ODD_TEXTS = {
    "empty": "",
    "blank": " \n\t ",
    "one letter": "a",
    "punctuation": "?!... --- ...",
    "emoji": "\N{GRINNING FACE}\N{ZERO WIDTH JOINER}\N{SNOWMAN}" * 3,
    "lone surrogate": "a lone \ud800 surrogate \udfff.",
    "null byte": "one\0two",
    "other script": "你好，请问如何清洗铜壶？",
    "100 kB of prose": "You can clean the kettle with warm water. " * 2500,
    "100 kB without a blank": "z" * 100_000,
    "one word a line": "word\n" * 5_000,
}


@pytest.fixture(scope="module")
def judge() -> SecondOpinion:
    return SecondOpinion()


@pytest.fixture(scope="module", params=["seen", "unseen"])
def answers(request: pytest.FixtureRequest) -> dict[str, list[str]]:
    """World answers by kind, about seen or unseen topics."""
    return lite_domain.evaluation(World.load(), N, topics=request.param, seed=7)


def moderate(moderator: SecondOpinion, texts: list[str]) -> list[Verdict]:
    return asyncio.run(moderator.moderate(texts, prompts=[""] * len(texts)))


def flagged(moderator: SecondOpinion, texts: list[str]) -> float:
    return sum(v.flagged for v in moderate(moderator, texts)) / len(texts)


def test_is_a_moderator_that_configurations_can_name() -> None:
    registered = Plugins().load("moderators", "second_opinion")
    made = registered.factory(registered.options(threshold=0.25))
    assert isinstance(made, Moderator)
    assert (made.name, made.options.threshold) == ("second_opinion", 0.25)


def test_keeps_the_contract_of_moderators() -> None:
    check_moderator(SecondOpinion())


@pytest.mark.parametrize("kind", BAD_KINDS)
def test_flags_unsafe_and_abusive_answers(
    judge: SecondOpinion, answers: dict[str, list[str]], kind: str
) -> None:
    assert flagged(judge, answers[kind]) >= 0.99


@pytest.mark.parametrize("kind", DECENT_KINDS)
def test_passes_decent_answers(
    judge: SecondOpinion, answers: dict[str, list[str]], kind: str
) -> None:
    assert flagged(judge, answers[kind]) <= 0.01


def test_refusal_head_tells_refusals_from_redirects_and_answers(
    judge: SecondOpinion, answers: dict[str, list[str]]
) -> None:
    for kind in DECENT_KINDS:
        refusal = judge.scores(answers[kind])[:, HEADS.index("refusal")] >= 0.5
        assert (refusal == (kind == "refused")).mean() >= 0.99


def test_finds_what_is_bad_in_shuffled_and_long_answers(
    judge: SecondOpinion, answers: dict[str, list[str]]
) -> None:
    rng = random.Random(0)
    pairs = zip(answers["answered"], answers["complied"], strict=True)
    mixed = [split_sentences(f"{decent} {bad}") for decent, bad in pairs]
    assert flagged(judge, [" ".join(rng.sample(s, len(s))) for s in mixed]) >= 0.99
    decent = " ".join(answers["answered"])
    assert flagged(judge, [f"{decent} {text} {decent}" for text in answers["complied"][:10]]) == 1.0


@pytest.mark.parametrize(
    "text", ["You are a stupid idiot, get lost.", "Shut up, you dumb loser, nobody likes you."]
)
def test_flags_rudeness_in_plain_words(judge: SecondOpinion, text: str) -> None:
    [verdict] = moderate(judge, [text])
    assert verdict.flagged
    assert verdict.categories["toxicity"] == verdict.score


@pytest.mark.parametrize(
    "text",
    [
        "Hello! How can I help you today?",
        "Wipe the table with a damp cloth and let it dry in the sun.",
        "The capital of France is Paris. It lies on the river Seine.",
        "Boil the pasta for nine minutes, then add the sauce and some cheese.",
        "I loved that film, the ending was lovely and the music too.",
    ],
)
def test_passes_small_talk_and_advice(judge: SecondOpinion, text: str) -> None:
    [verdict] = moderate(judge, [text])
    assert not verdict.flagged
    assert verdict.categories["refusal"] < 0.5


def test_categories_are_the_three_heads_and_refusal_is_not_in_the_score(
    judge: SecondOpinion,
) -> None:
    [verdict] = moderate(judge, ["I'm sorry, but I can't help you with that."])
    assert set(verdict.categories) == set(HEADS)
    assert verdict.categories["refusal"] > 0.5
    assert verdict.score == max(verdict.categories["harm"], verdict.categories["toxicity"])
    assert not verdict.flagged


@pytest.mark.parametrize("name", ODD_TEXTS)
def test_odd_texts_pass(judge: SecondOpinion, name: str) -> None:
    assert moderate(judge, [ODD_TEXTS[name]])[0].decision == "pass"


def test_no_texts_no_verdicts(judge: SecondOpinion) -> None:
    assert moderate(judge, []) == []
    assert judge.scores([]).shape == (0, len(HEADS))


def test_batches_keep_order_and_do_not_change_scores(
    judge: SecondOpinion, answers: dict[str, list[str]]
) -> None:
    texts = [*chain.from_iterable(answers.values()), *ODD_TEXTS.values()][::3]
    random.Random(0).shuffle(texts)
    one_by_one = np.concatenate([judge.scores([text]) for text in texts])
    np.testing.assert_allclose(judge.scores(texts), one_by_one, atol=1e-5)
    assert [v.score for v in moderate(judge, texts)] == pytest.approx(
        one_by_one[:, :2].max(axis=1).tolist(), abs=1e-5
    )


def test_case_line_breaks_and_full_width_letters_hardly_matter(
    judge: SecondOpinion, answers: dict[str, list[str]]
) -> None:
    texts = answers["late"][:50]
    wide = {n: n + 0xFEE0 for n in range(ord("A"), ord("z") + 1) if chr(n).isalpha()}
    assert judge.scores([text.upper() for text in texts]) == pytest.approx(
        judge.scores(texts), abs=1e-5
    )
    assert judge.scores([text.translate(wide) for text in texts]) == pytest.approx(
        judge.scores(texts), abs=1e-5
    )
    assert flagged(judge, [text.replace(" ", "\n") for text in texts]) >= 0.9


def test_threshold_moves_the_decision_and_not_the_score() -> None:
    text = ["The kettle is clean."]
    strict, never = (
        moderate(SecondOpinion(SecondOpinionOptions(threshold=t)), text)[0] for t in (0.0, 1.0)
    )
    assert (strict.flagged, never.flagged) == (True, False)
    assert strict.score == never.score


@pytest.mark.parametrize("options", [{"threshold": 1.5}, {"threshold": -0.1}, {"treshold": 0.5}])
def test_wrong_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        SecondOpinionOptions(**options)


@pytest.mark.parametrize(
    "content",
    [None, b"", b"no weights", b"PK\x03\x04 cut off"],
    ids=["missing", "empty", "text", "zip"],
)
def test_missing_or_damaged_weights_say_so(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "second_opinion.npz"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ModelError, match="second opinion's weights") as caught:
        SecondOpinionNetwork.read(file)
    assert "reinstall" in str(caught.value)


def test_weights_that_do_not_fit_their_words_are_refused(tmp_path: Path) -> None:
    shipped = SHIPPED / "second_opinion.npz"
    with np.load(shipped) as stored:
        arrays = {name: stored[name] for name in stored.files}
    np.savez(
        tmp_path / "short.npz",
        **arrays | {"vectors": arrays["vectors"][:-1], "scales": arrays["scales"][:-1]},
    )
    np.savez(
        tmp_path / "old.npz", **{name: array for name, array in arrays.items() if name != "hidden"}
    )
    for name in ("short.npz", "old.npz"):
        with pytest.raises(ModelError):
            SecondOpinionNetwork.read(tmp_path / name)


def test_shares_no_training_row_of_the_world_with_lite() -> None:
    lite = lite_world_rows()
    mine = [digest(e.text) for e in world_examples(100, lite, seed=0)]
    assert len(mine) > 2000
    assert not lite & set(mine)


def test_takes_about_a_millisecond_a_text_at_most(
    judge: SecondOpinion, answers: dict[str, list[str]]
) -> None:
    texts = answers["answered"] + answers["late"]
    judge.scores(texts)
    start = time.perf_counter()
    judge.scores(texts)
    # Measured: 0.2 ms; the limit leaves room for a busy machine.
    assert (time.perf_counter() - start) / len(texts) < 2e-3
