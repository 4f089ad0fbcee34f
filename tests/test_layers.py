"""Imports go down one list only."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

import ttsa_guard

ROOT = Path(ttsa_guard.__file__).parent
LAYERS = """
    errors files forks aside verdict settings environment images messages text languages budget
    quality record audit telemetry config hookspecs plugins schema observers service quotes
    reasoning tool_calls profile request hf vision moderators backends steerers completion
    selection streaming review search guard profiling nemo serve embedded bench plan plots pages
    conformance testing checking setup cli
""".split()


def sources():
    return sorted(p for p in ROOT.rglob("*.py") if p.parent != ROOT or p.name != "__init__.py")


def layer(path):
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imports(source):
    """Our modules that `source` imports, for type checkers too."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [node.module]
            # x is a module, a public name of one, or a dunder of the package itself
            if node.module == "ttsa_guard":
                public = ttsa_guard._HOME
                names = [
                    f"ttsa_guard.{public.get(a.name, a.name)}"
                    for a in node.names
                    if not a.name.startswith("__")
                ]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        yield from (n.split(".")[1] for n in names if n.startswith("ttsa_guard."))


def upward(source, home):
    below = LAYERS[: LAYERS.index(home) + 1]
    return [n for n in imports(source) if n not in below]


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
        pytest.param(
            "if TYPE_CHECKING:\n    from ttsa_guard.guard import Guard", id="for-type-checkers"
        ),
    ],
)
def test_an_upward_import_is_seen(source):
    assert upward(source, "config")


def classes():
    """Public classes by name, with the modules that define them."""
    found = defaultdict(list)
    for path in sources():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(str(path.relative_to(ROOT)))
    return found


def test_no_two_classes_have_one_name():
    assert {name: where for name, where in classes().items() if len(where) > 1} == {}


def cycles(graph):
    """Modules from which a chain of imports leads back to them."""
    reached = {start: set(after) for start, after in graph.items()}
    for _ in graph:
        for found in reached.values():
            found.update(*(graph.get(module, ()) for module in list(found)))
    return sorted(start for start, found in reached.items() if start in found)


def test_no_modules_import_one_another():
    """Within a layer too, and for type checkers too."""
    paths = {
        ".".join(p.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): p
        for p in sources()
    }
    graph = {}
    for name, path in paths.items():
        after = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                named = [f"{node.module}.{alias.name}" for alias in node.names]
                after |= {module if module in paths else node.module for module in named}
            elif isinstance(node, ast.Import):
                after |= {alias.name for alias in node.names}
        graph[name] = after & set(paths) - {name}
    assert cycles(graph) == []
