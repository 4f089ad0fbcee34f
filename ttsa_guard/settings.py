"""The base of all settings, and the way from plain data to settings.

Unknown keys are refused, and the hint names the nearest valid one. Nothing is dropped silently, and
no error quotes a value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from ttsa_guard.errors import ConfigError, nearest
from ttsa_guard.files import RepeatedKeyError, reason

M = TypeVar("M", bound=BaseModel)
VARIABLE = re.compile(r"[A-Z]{1,20}|[A-Z][A-Z0-9]{0,20}(_[A-Z0-9]{1,20})+")
"""Matches what looks like the name of an environment variable and not like a key.

Parts are short, and digits stand only in names with underscores.
"""


class Settings(BaseModel):
    """Base of all settings and plugin options: frozen, without unknown keys or infinite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def read_yaml(path: Path, *, hint: str) -> Any:
    """Return what a YAML file holds.

    Raises:
        ConfigError: the file cannot be read. Its hint is `hint`.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        # A YAML error quotes the line, which may hold a secret, so it is neither shown nor chained.
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"cannot read {path}{where}: {reason(error)}", hint=hint) from None


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML would drop one silently."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (key.tag, key.value) in seen:
                raise RepeatedKeyError(problem_mark=key.start_mark)
            seen.add((key.tag, key.value))
        return node


def validated(model: type[M], data: Mapping[str, Any], *, where: str) -> M:
    """Return `data` as an instance of `model`.

    Args:
        where: the name of the settings in error messages.

    Raises:
        ConfigError: it names the first wrong key and how to correct it. Values are never quoted.
    """
    problems: list[ConfigError] = []
    found = tried(model, data, where=where, problems=problems)
    if found is None:
        raise problems[0]
    return found


def tried(model: type[M], data: Any, *, where: str, problems: list[ConfigError]) -> M | None:
    """Return `data` as an instance of `model`, or None, and then add every problem to `problems`.

    Unknown keys come first, because a typo also explains a missing field.

    Args:
        where: the name of the settings in error messages.
    """
    if not isinstance(data, Mapping):
        problems.append(
            ConfigError(
                f"{where} holds a {type(data).__name__}, not settings",
                hint="give a mapping such as 'gate: [lite]'",
            )
        )
        return None
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        found = sorted(
            error.errors(include_url=False), key=lambda e: e["type"] != "extra_forbidden"
        )
        problems.extend(_problem(model, one, where) for one in found)
        return None


PLUGINS = ("moderators.", "backends.", "steerers.")
"""How the names of plugins' options begin in error messages."""
_SHOULD = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "string": "a text",
    **dict.fromkeys(("tuple", "list", "set", "frozen_set"), "a list"),
    **dict.fromkeys(("dict", "model", "mapping"), "a mapping"),
}
_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "a mapping",
    type(None): "nothing",
}


def _problem(model: type[BaseModel], found: Any, where: str) -> ConfigError:
    """Return one of pydantic's errors in our words."""
    path, valid, field = _locate(model, found["loc"])
    key = where + path
    if found["type"] == "extra_forbidden":
        return ConfigError(f"unknown setting {key!r}", hint=nearest(str(found["loc"][-1]), valid))
    known = "plugins --verbose" if where.startswith(PLUGINS) else "config schema"
    told = meaning(field.description, field.default) if field else ""
    hint = told or f"change it; ttsa-guard {known} tells what is valid"
    return ConfigError(f"setting {key!r}: {_wrong(found)}", hint=hint)


def _wrong(found: Any) -> str:
    """Return what is wrong with a value, which is not quoted."""
    if found["type"] == "value_error":  # from a validator of ours, whose message is complete
        return str(found["ctx"]["error"])
    if found["type"] == "missing":
        return "it is missing"
    kind = _SHOULD.get(re.sub("_(type|parsing|from_float|attributes_type)$", "", found["type"]))
    if kind is None:
        return str(found["msg"]).replace("Input should be", "it should be")
    got = _KINDS.get(type(found["input"]), "")
    return f"it should be {kind}" + (f" and is {got}" if got not in ("", kind) else "")


def meaning(description: str | None, default: Any) -> str:
    """Return a hint that says what a setting is for, and its default; "" if nothing is known."""
    if not description:
        return ""
    plain = isinstance(default, bool | int | float | str) and default != ""
    told = f"; default: {default}" if plain else ""
    return f"it means: {description.rstrip('.')}{told}"


def _locate(
    annotation: Any, location: tuple[int | str, ...]
) -> tuple[str, set[str], FieldInfo | None]:
    """Return the path to a setting as a user writes it, the names that are valid there, and the
    field that it is in.

    The types are followed along pydantic's location. That also names the members of unions, which
    are left out.
    """
    path, valid, field = "", set[str](), None
    for part in location:
        members = [a for a in get_args(annotation) if a is not type(None)]
        if get_origin(annotation) in (Union, UnionType) and len(members) == 1:
            annotation, members = members[0], [*get_args(members[0])]
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            path, valid = f"{path}.{part}", set(annotation.model_fields)
            field = annotation.model_fields.get(str(part))
            annotation = field.annotation if field else None
        elif get_origin(annotation) in (Union, UnionType):
            annotation = next((a for a in members if getattr(a, "__name__", None) == part), None)
        else:
            path += f"[{part}]" if isinstance(part, int) else f".{part}"
            annotation = members[-1 if isinstance(part, str) else 0] if members else None
    return path, valid, field
