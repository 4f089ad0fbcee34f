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

from ttsa_guard.errors import ConfigError, nearest

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
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        # A YAML error quotes the line, which may hold a secret, so it is neither shown nor chained.
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"cannot read {path}{where}: {type(error).__name__}", hint=hint) from None


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


def _problem(model: type[BaseModel], found: Any, where: str) -> ConfigError:
    """Return one of pydantic's errors in our words."""
    path, valid = _locate(model, found["loc"])
    key = where + path
    if found["type"] == "extra_forbidden":
        return ConfigError(f"unknown setting {key!r}", hint=nearest(str(found["loc"][-1]), valid))
    problem, hint = found["msg"], f"got {type(found['input']).__name__}"
    if found["type"] == "value_error":  # from a validator of ours, whose message is complete
        problem, hint = (
            str(found["ctx"]["error"]),
            "change it; ttsa-guard plugins --verbose tells the options of plugins",
        )
    return ConfigError(f"setting {key!r}: {problem}", hint=hint)


def _locate(annotation: Any, location: tuple[int | str, ...]) -> tuple[str, set[str]]:
    """Return the path to a setting as a user writes it, and the names that are valid there.

    The types are followed along pydantic's location. That also names the members of unions, which
    are left out.
    """
    path, valid = "", set[str]()
    for part in location:
        members = [a for a in get_args(annotation) if a is not type(None)]
        if get_origin(annotation) in (Union, UnionType) and len(members) == 1:
            annotation, members = members[0], [*get_args(members[0])]
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            path, valid = f"{path}.{part}", set(annotation.model_fields)
            annotation = annotation.model_fields[str(part)].annotation if part in valid else None
        elif get_origin(annotation) in (Union, UnionType):
            annotation = next((a for a in members if getattr(a, "__name__", None) == part), None)
        else:
            path += f"[{part}]" if isinstance(part, int) else f".{part}"
            annotation = members[-1 if isinstance(part, str) else 0] if members else None
    return path, valid
