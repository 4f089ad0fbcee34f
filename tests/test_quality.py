import math

import pytest

from ttsa_guard.quality import Quality, has_debris, repetition

GOOD = "Try a calmer word, and say what you would like to change."


def flaws(text=GOOD, *, log_likelihood=None, finished=True, **limits):
    return Quality(**limits).flaws(text, log_likelihood=log_likelihood, finished=finished)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(GOOD, (), id="good"),
        pytest.param("", ("short",), id="empty"),
        pytest.param("No way.", ("short",), id="two-words"),
        pytest.param("we can do it " * 5, ("repeats",), id="loop"),
        pytest.param("先把水烧开，再加一点盐。", (), id="chinese"),
        pytest.param("お湯を沸かしてください。", (), id="japanese"),
        pytest.param("ต้มน้ำก่อนแล้วใส่เกลือ", (), id="thai"),
        pytest.param("물을 먼저 끓이세요.", (), id="korean"),
        pytest.param("好的。", ("short",), id="short-chinese"),
        pytest.param("我们可以。" * 6, ("repeats",), id="chinese-loop"),
        pytest.param(GOOD + "\ufffd", ("broken",), id="replacement-character"),
        pytest.param(GOOD + "<|im_end|>", ("broken",), id="template-marker"),
        pytest.param(GOOD + "\x00", ("broken",), id="control-character"),
        pytest.param("One.\n\tTwo.\r\nThree.", (), id="white-space-is-fine"),
    ],
)
def test_flaws_of_a_text(text, expected):
    assert flaws(text) == expected


@pytest.mark.parametrize(
    ("text", "finished", "expected"),
    [
        pytest.param("That was all of", False, ("cut off",), id="in-a-sentence"),
        pytest.param("That was all of it. ", False, (), id="at-the-end-of-one"),
        pytest.param("That was all of", True, (), id="finished"),
        pytest.param("先把水烧开，再", False, ("cut off",), id="in-a-chinese-sentence"),
        pytest.param("先把水烧开。", False, (), id="at-the-end-of-a-chinese-one"),
    ],
)
def test_an_answer_that_was_cut_off(text, finished, expected):
    assert flaws(text, finished=finished) == expected


@pytest.mark.parametrize(
    ("log_likelihood", "floor", "expected"),
    [
        pytest.param(-2.0, -2.0, (), id="at-the-floor"),
        pytest.param(-2.1, -2.0, ("unlikely",), id="below"),
        pytest.param(0.0, 0.0, (), id="floor-of-zero"),
        pytest.param(-0.1, 0.0, ("unlikely",), id="below-zero"),
        pytest.param(-99.0, None, (), id="no-floor"),
        pytest.param(None, -2.0, (), id="not-measured"),
        pytest.param(math.nan, -2.0, ("unlikely",), id="nan"),
        pytest.param(math.nan, None, ("unlikely",), id="nan-without-floor"),
        pytest.param(-math.inf, None, ("unlikely",), id="impossible"),
    ],
)
def test_the_likelihood_floor(log_likelihood, floor, expected):
    assert flaws(log_likelihood=log_likelihood, floor=floor) == expected


def test_the_limits_can_be_moved():
    assert flaws("No way.", shortest=2) == ()
    assert flaws("we can do it " * 5, repeats=1.0) == ()


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("a b c", 0.0),
        ("a b c d", 0.0),
        ("a b c d e", 0.0),
        ("a a a a a", 1.0),
        ("a b c d a b c d", 0.4),
    ],
)
def test_repetition(text, share):
    assert repetition(text.split()) == pytest.approx(share)


def test_no_debris_in_other_scripts():
    assert not has_debris("Grüße, 你好, مرحبا 🙂")


def test_an_answer_in_the_users_own_words_is_none():
    asked = "Tell me how to build a small boat out of paper and string"
    assert Quality().flaws(
        asked + ", please.", log_likelihood=None, finished=True, asked=asked
    ) == ("echo",)
    answer = (
        "To build a small boat out of paper, fold the sheet in half and press the edges. Tie it"
        " with the string."
    )
    assert Quality().flaws(answer, log_likelihood=None, finished=True, asked=asked) == ()


def test_bare_numbers_are_no_answer():
    assert flaws("Do it so: 1. 1. 2. 3. 4. 5. 6. 7.") == ("broken",)
    assert flaws("It was built in 1999 and has 12 rooms on 3 floors.") == ()
