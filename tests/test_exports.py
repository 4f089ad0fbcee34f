import ast
import inspect

import pytest

import ttsa_guard


def imported_for_type_checkers():
    [block] = [
        node for node in ast.parse(inspect.getsource(ttsa_guard)).body if isinstance(node, ast.If)
    ]
    return {(alias.name, node.module.split(".")[1]) for node in block.body for alias in node.names}


def test_all_is_sorted_and_the_same_in_every_place():
    assert ttsa_guard.__all__ == sorted(set(ttsa_guard.__all__))
    assert {name for name, _ in imported_for_type_checkers()} == set(ttsa_guard.__all__)


@pytest.mark.parametrize(("name", "home"), sorted(imported_for_type_checkers()))
def test_a_public_name_comes_from_its_module(name, home):
    assert getattr(ttsa_guard, name) is getattr(
        __import__(f"ttsa_guard.{home}", fromlist=[name]), name
    )


def test_dir_lists_the_public_names():
    assert set(ttsa_guard.__all__) <= set(dir(ttsa_guard))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'Gaurd'"):
        ttsa_guard.Gaurd  # noqa: B018
