"""Imports go down one list only."""

import ast
from pathlib import Path

import pytest

import ttsa_guard

ROOT = Path(ttsa_guard.__file__).parent
LAYERS = """
    errors forks aside messages verdict budget record telemetry config hookspecs plugins observers parts service text quotes
    reasoning quality profile request hf moderators backends steerers completion selection streaming review guard profiling
    nemo embedded bench plan conformance testing cli
""".split()
# pluggy reads the annotations of no hook; the names in them come from above, for readers and type checkers only.
FOR_TYPE_CHECKERS = {("hookspecs", "plugins")}


def sources():
    return sorted(p for p in ROOT.rglob("*.py") if p.parent != ROOT or p.name != "__init__.py")


def layer(path):
    return path.relative_to(ROOT).with_suffix("").parts[0]


def only_for_type_checkers(tree):
    blocks = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    return {id(inner) for block in blocks for statement in block.body for inner in ast.walk(statement)}


def imports(source):
    """Our modules that `source` imports, and whether that is for type checkers only."""
    tree = ast.parse(source)
    hidden = only_for_type_checkers(tree)
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [node.module]
            if node.module == "ttsa_guard":  # x is a module, a public name of one, or a dunder of the package itself
                public = ttsa_guard._HOME
                names = [f"ttsa_guard.{public.get(a.name, a.name)}" for a in node.names if not a.name.startswith("__")]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        yield from ((n.split(".")[1], id(node) in hidden) for n in names if n.startswith("ttsa_guard."))


def upward(source, home):
    below = LAYERS[: LAYERS.index(home) + 1]
    return [n for n, hidden in imports(source) if n not in below and not (hidden and (home, n) in FOR_TYPE_CHECKERS)]


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path):
    # rails/config.py is the door that the host imports; it opens to `nemo` and nothing imports it.
    home = "nemo" if layer(path) == "rails" else layer(path)
    assert upward(path.read_text(encoding="utf-8"), home) == []


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("from ttsa_guard.guard import Guard", id="from"),
        pytest.param("from ttsa_guard import guard", id="module"),
        pytest.param("from ttsa_guard import Guard", id="public-name"),
        pytest.param("import ttsa_guard.nemo.actions", id="import"),
        pytest.param("def f():\n    from ttsa_guard.guard import Guard", id="inside-a-function"),
        pytest.param("if TYPE_CHECKING:\n    from ttsa_guard.guard import Guard", id="for-type-checkers"),
    ],
)
def test_an_upward_import_is_seen(source):
    assert upward(source, "config")


def test_the_plugin_system_stays_small():
    lines = sum(len((ROOT / name).read_text().splitlines()) for name in ("hookspecs.py", "plugins.py"))
    assert lines < 150
