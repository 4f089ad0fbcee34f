"""The settings that hold, and where each comes from."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from ttsa_guard.checking.folder import HostFolder
from ttsa_guard.config import AUTO, HOST_KEYS, GuardConfig, Use
from ttsa_guard.environment import VARIABLES, set_variables, with_environment
from ttsa_guard.errors import ConfigError
from ttsa_guard.hf.profiles import find_profile
from ttsa_guard.schema import PLACES
from ttsa_guard.settings import VARIABLE, Settings, read_yaml

HIDDEN = "(hidden)"
_SECRET = re.compile(r"(^|_)(key|token|secret|password|authorization)s?$", re.IGNORECASE)
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+(?=@)|(?<=\?)\S+")
"""Matches user and password in an address, and its query."""


@dataclass(frozen=True)
class Effective:
    """One setting that holds."""

    key: str
    """As in ``budget.seconds``."""
    value: Any
    """As YAML has it. Values that may be secrets are hidden."""
    origin: str
    """`default`, the file, the environment, the model's profile, or what `auto` stands for."""


def read_settings(path: Path) -> tuple[Any, str]:
    """Return the settings in a file or in a folder of NeMo Guardrails, and the file they stand in.

    Raises:
        ConfigError: there is no such file or folder, it cannot be read, or it is a file of NeMo
            Guardrails, which does not say enough without its folder.
    """
    if path.is_dir():
        folder = HostFolder.read(path)
        return folder.settings, folder.settings_file
    data = read_yaml(path, hint="give a YAML file with the guard's settings, or a config folder")
    if isinstance(data, Mapping) and HOST_KEYS & set(data):
        raise ConfigError(
            f"{path} is a file of NeMo Guardrails", hint=f"give its folder: {path.parent}"
        )
    return data, str(path)


def effective(path: Path | None) -> list[Effective]:
    """Return all settings that hold, in the order of `GuardConfig`.

    Args:
        path: a file, or a folder of NeMo Guardrails; None for the defaults.

    Raises:
        ConfigError: the settings cannot be read, or they are wrong.
        ModelError: the profile that they name cannot be read.
    """
    data, file = read_settings(path) if path is not None else (None, "")
    config = GuardConfig.parse(with_environment(data))
    given = data or {}
    profile_path = config.backend.options.get("profile")
    profile = find_profile(None if profile_path is None else Path(str(profile_path)), config.model)
    applied = profile.applied(config.resolved())
    orders = ("steerers", "steerers_for_harm")
    of_profile = {key for key in orders if getattr(applied, key) != getattr(config, key)}
    floor = {"floor": applied.quality.for_model(profile.floor).floor}
    if applied.quality.floor == "auto" and profile.floor is not None:
        applied = applied.model_copy(update={"quality": applied.quality.model_copy(update=floor)})
        of_profile.add("quality.floor")
    named = f"profile of {profile.model}"

    def origin(key: str, value: Any) -> str:
        if key in of_profile:
            return named
        top, _, inner = key.partition(".")
        there = top in given and (not inner or inner in (given[top] or {}))
        told = file if there else "default"
        if variables := [name for name, place in set_variables().items() if _is_in(place, key)]:
            # a plugin is one setting here, which the file and the environment may make together
            whole = ".".join(VARIABLES[variables[0]]) == key
            told = ("" if whole else f"{told}; ") + f"environment: {', '.join(variables)}"
        before = getattr(config, top)
        if top in ("gate", "guide") and any(member.use == AUTO for member in before):
            told += f"; {AUTO} is {value[0]['use']} here"
        return told + "".join(_variables(value))

    return [
        Effective(key, _shown(value) if key in PLACES else value, origin(key, value))
        for key, value in _flat(applied)
    ]


def _is_in(place: tuple[str, ...], key: str) -> bool:
    return ".".join(place) == key or ".".join(place).startswith(f"{key}.")


def as_yaml(settings: list[Effective]) -> str:
    """Return settings as YAML, each with a comment that says where it comes from."""
    lines, above = [], ""
    for one in settings:
        top, _, inner = one.key.partition(".")
        if inner and top != above:
            lines.append(f"{top}:")
        above = top
        text = yaml.safe_dump(
            one.value, default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False
        )
        value = text.removesuffix("...\n").strip()
        lines.append(f"{'  ' if inner else ''}{inner or top}: {value}  # {one.origin}")
    return "\n".join(lines) + "\n"


def _flat(config: GuardConfig) -> Iterator[tuple[str, Any]]:
    """Yield keys and values as YAML would have them, of nested settings too."""
    for key in GuardConfig.model_fields:
        value = getattr(config, key)
        if isinstance(value, Settings) and not isinstance(value, Use):
            for inner in type(value).model_fields:
                yield f"{key}.{inner}", _plain(getattr(value, inner))
        else:
            yield key, _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        # what is not set stays out, so that a plugin is its name and its options
        return {k: _plain(v) for k, v in value if k in ("use", *value.model_fields_set)}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list | set | frozenset):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def _shown(value: Any, name: str = "") -> Any:
    """Return a value without secrets in it."""
    if isinstance(value, Mapping):
        return {k: _shown(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [_shown(v, name) for v in value]
    if not isinstance(value, str):
        return value
    if _SECRET.search(name) and not VARIABLE.fullmatch(value):
        return HIDDEN
    return _CREDENTIALS.sub(HIDDEN, value) if "://" in value else value


def _variables(value: Any, name: str = "") -> Iterator[str]:
    """Yield the environment variables that a value names, and whether they are set."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _variables(item, key)
    elif isinstance(value, list):
        for item in value:
            yield from _variables(item, name)
    elif isinstance(value, str) and _SECRET.search(name) and VARIABLE.fullmatch(value):
        state = "set" if os.environ.get(value, "").strip() else "not set"
        yield f"; {value} is {state} in the environment"
