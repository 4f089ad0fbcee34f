"""Check that plugins are installed and their options valid, without torch or NeMo Guardrails.

Importing those takes seconds. A plugin that does is checked by the schema in this package, if it is
one of ours.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.metadata import EntryPoint
from typing import Any

from ttsa_guard.errors import ConfigError, PluginError, TTSAError, nearest
from ttsa_guard.plugins import HEAVY, KINDS, RENAMED, Kind, Plugins, Registered
from ttsa_guard.schema import add_options, options_schema, shipped_schema
from ttsa_guard.settings import meaning, tried

_SAID = {
    "minimum": "it is less than {}",
    "exclusiveMinimum": "it is not greater than {}",
    "maximum": "it is greater than {}",
    "exclusiveMaximum": "it is not less than {}",
    "minLength": "it is shorter than {}",
    "minItems": "it has fewer than {} items",
    "type": "it is no {}",
    "enum": "it is none of {}",
    "const": "it is not {}",
}
"""What to say of a value that breaks a rule of the schema; the value itself is never quoted."""
_WITH_TORCH = "numpy"
"""What our own plugins import only if they import torch, too. Even that takes a tenth of a second,
so none of them is imported any further."""


class _NotNow(MetaPathFinder):
    """Refuses the import of heavy packages that are not there yet."""

    def __init__(self, *, ours: bool) -> None:
        self._heavy = (*HEAVY, _WITH_TORCH) if ours else HEAVY
        self.refused = ""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        """Raise `ImportError` for a heavy package; leave all others to the other finders."""
        root = fullname.partition(".")[0]
        if root in self._heavy and root not in sys.modules:
            self.refused = "torch" if root == _WITH_TORCH else root
            raise ImportError(f"{root} is not imported here")


@contextmanager
def _light(*, ours: bool) -> Iterator[_NotNow]:
    finder = _NotNow(ours=ours)
    sys.meta_path.insert(0, finder)
    try:
        yield finder
    finally:
        sys.meta_path.remove(finder)


def load_light(plugins: Plugins, kind: Kind, name: str) -> tuple[Registered | None, str]:
    """Return the plugin `name`, or None and the heavy package that importing it needs.

    Raises:
        PluginError: it is not installed, or cannot be imported for another reason.
    """
    point = plugins.installed.get(RENAMED.get(name, name))
    with _light(ours=point is not None and _is_ours(point)) as finder:
        try:
            return plugins.load(kind, name), ""
        except PluginError:
            if not finder.refused:
                raise
            return None, finder.refused


def installed_schema() -> dict[str, Any]:
    """Return the schema of all settings, with the options of installed plugins.

    Plugins of other packages are left out if importing them needs what is heavy, or fails.
    """
    schema, plugins = shipped_schema(), Plugins()
    for name, point in sorted(plugins.installed.items()):
        if _is_ours(point):
            continue
        for kind in KINDS:
            try:
                registered, _ = load_light(plugins, kind, name)
            except PluginError:
                continue  # of another kind, or broken: ttsa-guard plugins says so
            if registered is not None:
                add_options(schema, kind, name, registered.options)
    return schema


def _is_ours(point: EntryPoint) -> bool:
    return point.module.partition(".")[0] == "ttsa_guard"


def check_options(
    plugins: Plugins, kind: Kind, name: str, options: Mapping[str, Any], *, where: str
) -> tuple[Mapping[str, Any], list[TTSAError], str]:
    """Check a plugin and its options.

    Args:
        where: the path to the plugin in messages.

    Returns:
        the options with their defaults, as far as they are known; what is wrong; and a note on what
        was not checked, or "".
    """
    inside = f"{where}.options"
    try:
        registered, heavy = load_light(plugins, kind, name)
    except PluginError as error:
        return options, [PluginError(f"{where}: {error.message}", hint=error.hint)], ""
    if registered is not None:
        problems: list[ConfigError] = []
        made = tried(registered.options, options, where=inside, problems=problems)
        values = dict(options) if made is None else dict(made)
        return values, [*problems], ""
    name = RENAMED.get(name, name)
    shipped = shipped_schema()
    schema = options_schema(shipped, kind, name)
    if schema is None:
        if others := [k for k in shipped["$defs"] if k.endswith(f".{name}") and k.count(".") == 1]:
            return options, [_wrong_kind(where, kind, name, others[0])], ""
        note = f"{inside}: not checked, because importing {name} needs {heavy}"
        return options, [], note if options else ""
    known = {
        k: rule["default"] for k, rule in schema.get("properties", {}).items() if "default" in rule
    }
    note = f"{inside}: checked by the schema alone, because importing {name} needs {heavy}"
    wrong: list[TTSAError] = [*_by_schema(schema, options, inside)]
    return known | dict(options), wrong, note if options and not wrong else ""


def _wrong_kind(where: str, kind: Kind, name: str, found: str) -> PluginError:
    return PluginError(
        f"{where}: plugin {name!r} registers no {kind[:-1]} of that name",
        hint=f"it is one of the {found.partition('.')[0]}",
    )


def _by_schema(
    schema: Mapping[str, Any], options: Mapping[str, Any], where: str
) -> Iterator[ConfigError]:
    """Yield what is wrong with options by their schema, unknown names first."""
    if not options and not schema.get("required"):
        return
    from jsonschema import Draft202012Validator  # it takes a tenth of a second

    errors = list(Draft202012Validator(schema).iter_errors(options))
    for error in sorted(errors, key=lambda e: e.validator != "additionalProperties"):
        path = where + "".join(
            f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path
        )
        if error.validator == "additionalProperties":
            valid = error.schema.get("properties", {})
            for key in sorted(set(map(str, error.instance)) - set(valid)):
                yield ConfigError(f"unknown setting {f'{path}.{key}'!r}", hint=nearest(key, valid))
        elif error.validator == "required":
            missing: Sequence[str] = [k for k in error.validator_value if k not in error.instance]
            for key in missing:
                told = _meaning(error.schema, key)
                yield ConfigError(f"setting {f'{path}.{key}'!r}: it is missing", hint=told)
        else:
            said = _SAID.get(error.validator, "it is of no type that is allowed here")
            problem = said.format(error.validator_value)
            told = _meaning(schema, next(iter(error.absolute_path), ""))
            yield ConfigError(f"setting {path!r}: {problem}", hint=told)


def _meaning(schema: Mapping[str, Any], key: Any) -> str:
    rule = schema.get("properties", {}).get(key, {})
    told = meaning(rule.get("description"), rule.get("default"))
    return told or "ttsa-guard config schema tells what is valid"
