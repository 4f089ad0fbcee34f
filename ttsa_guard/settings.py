"""The base of all settings, and the way from plain data to settings.

Unknown keys are refused, and the hint names the nearest valid one. Nothing is dropped silently, and
no error quotes a value.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from ttsa_guard.errors import ConfigError, nearest

M = TypeVar("M", bound=BaseModel)


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
    if not isinstance(data, Mapping):
        raise ConfigError(
            f"{where} holds a {type(data).__name__}, not settings",
            hint="give a mapping such as 'gate: [lite]'",
        )
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        found = error.errors(include_url=False)
        # An unknown key comes first, because a typo also explains a missing field.
        first = next((e for e in found if e["type"] == "extra_forbidden"), found[0])
        path, valid = _locate(model, first["loc"])
        key = where + path
        if first["type"] == "extra_forbidden":
            raise ConfigError(
                f"unknown setting {key!r}", hint=nearest(str(first["loc"][-1]), valid)
            ) from None
        problem, hint = first["msg"], f"got {type(first['input']).__name__}"
        if first["type"] == "value_error":  # from a validator of ours, whose message is complete
            problem, hint = (
                first["ctx"]["error"],
                "change it; ttsa-guard plugins --verbose tells the options of plugins",
            )
        raise ConfigError(f"setting {key!r}: {problem}", hint=hint) from None


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
