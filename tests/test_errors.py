import re

import pytest

from ttsa_guard import errors
from ttsa_guard.errors import BudgetError, ModeratorError, TTSAError, nearest


def drawn_tree():
    """Child to parent, from the drawing in the module's docstring."""
    parents, branch = {"TTSAError": "Exception"}, [(0, "TTSAError")]
    for line in errors.__doc__.splitlines():
        if found := re.match(r"[\s│]*[├└]── (\w+)", line):
            branch = [(column, name) for column, name in branch if column < found.start(1)]
            parents[found[1]] = branch[-1][1]
            branch.append((found.start(1), found[1]))
    return parents


def test_the_drawn_tree_is_the_real_one():
    real = {
        n: c.__base__.__name__
        for n, c in vars(errors).items()
        if isinstance(c, type) and issubclass(c, Exception)
    }
    assert drawn_tree() == {"TTSAError": "Exception"} | real
    assert len(real) > 5


def test_the_hint_is_printed_below_the_message():
    assert (
        str(TTSAError("no such model", hint="download it")) == "no such model\n  hint: download it"
    )
    assert str(TTSAError("no such model")) == "no such model"


def test_only_a_moderator_is_worth_another_try():
    assert ModeratorError("down").retryable
    assert not TTSAError("x").retryable
    assert not BudgetError("seconds", limit=1, wanted=2).retryable


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        pytest.param("secnods", "did you mean 'seconds'?", id="close"),
        pytest.param("zzz", "valid: generations, seconds", id="far"),
    ],
)
def test_nearest(word, hint):
    assert nearest(word, ["seconds", "generations"]) == hint


def test_nearest_of_nothing():
    assert nearest("x", []) == "valid: (none)"
