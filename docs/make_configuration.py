"""Write `docs/configuration.md` from the models that check the settings: `python
docs/make_configuration.py`.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ttsa_guard.bench.config import BenchConfig
from ttsa_guard.cli.listing import imported, installed
from ttsa_guard.config import GuardConfig
from ttsa_guard.plan.config import PlanConfig
from ttsa_guard.profile import ModelProfile

PAGE = Path(__file__).parent / "configuration.md"
EXAMPLES = {
    "backend": "backend: {use: transformers, options: {model: smollm2, dtype: float32}}",
    "gate": "gate:\n  - lite\n  - {use: guard_llm, options: {model: Qwen/Qwen3Guard-Gen-0.6B}}",
    "combine": (
        "gate:\n  - {use: lite, weight: 2}\n  - {use: second_opinion, fail: open}\ncombine:"
        " weighted"
    ),
    "gate_seconds": "gate_seconds: 2.5",
    "gate_tool_calls": "gate_tool_calls: false",
    "reasoning": "reasoning: regenerate",
    "answer_seconds": "answer_seconds: 60",
    "guide": "guide: {use: lite, options: {threshold: {false_alarms: 0.01}}}",
    "guide_combine": (
        "guide:\n  - {use: patterns, options: {policies: [links]}, hard: true}\n  -"
        " lite\nguide_combine: lexicographic"
    ),
    "steerers": "steerers: [erase, {use: prefill, options: {n: 4}}, embedding]",
    "steerers_for_harm": "steerers_for_harm: [prefill]",
    "budget": "budget: {seconds: 10, generations: 24, decode_passes: 3}",
    "generation": "generation: {max_new_tokens: 256, draft_tokens: 48}",
    "quality": "quality: {shortest: 5, floor: -2.5}",
    "audit": "audit: {path: audit.jsonl}",
    "image_gate": "image_gate: {use: open_nsfw, options: {threshold: 0.5}}",
    "images": "images: {max_bytes: 4000000, max_images: 4}",
    "streaming": "streaming: progressive",
    "requests": "requests: refuse",
    "fallback": "fallback: Let us talk about something else.",
    "seed": "seed: 7",
}
"""Settings of a guard, as YAML, by the key that they show."""
INTRODUCTION = """\
# Configuration

<!-- Written by docs/make_configuration.py: change descriptions in the code and run it again. -->

The settings of a guard are one mapping. It stands in one of three places:

* under `custom_data.ttsa_guard` in the `config.yml` of NeMo Guardrails,
* in a YAML file, for `--config FILE` on the command line and `GuardConfig.load(path)`,
* in Python, for `GuardConfig.parse({...})`.

Every key has a default. The defaults guard the model in the package. An unknown key or a value
out of range stops the program, and the message names the key and the nearest valid one.
`ttsa-guard config check PATH` finds everything that is wrong in a file or a folder without loading
a model, and `ttsa-guard config show PATH` prints the settings that hold.
`ttsa-guard doctor --config FILE` loads what a file names and tries it.

What differs between deployments of one configuration may come from environment variables. They go
over the file, on the command line and in NeMo Guardrails; options of a command go over them.
`ttsa-guard config show` says what comes from where. From Python it is `GuardConfig.deployed(path)`;
`parse` and `load` look at no variables.

| variable | takes the place of |
|---|---|
| `TTSA_GUARD_MODEL` | `backend.options.model` |
| `TTSA_GUARD_URLS` | `backend.options.urls`; several with commas between them |
| `TTSA_GUARD_AUDIT` | `audit.path` |
| `TTSA_GUARD_CONFIG` | the option `--config` |
| `TTSA_GUARD_UPSTREAM` | the option `--upstream` of `serve` |

Keys of services have variables of their own, which the moderators' option `key` names.

Editors that know the language server for YAML complete keys and explain them, if the first line of
the settings names the schema. It is `ttsa_guard/settings.schema.json` in the installed package;
`ttsa-guard config schema --out FILE` writes it with the plugins of other packages, too.

```yaml
# yaml-language-server: $schema=settings.schema.json
gate: lite
```

A plugin is named by its entry point, with options if it needs any: `lite`, or
`{use: lite, options: {threshold: 0.5}}`. Where several plugins can stand, one alone needs no list.
"""
KINDS = {
    "moderator": "Moderators",
    "image_moderator": "Image moderators",
    "steerer": "Steerers",
    "backend": "Backends",
}


def page() -> str:
    """Return the whole page as Markdown."""
    parts = [INTRODUCTION, "## Settings of a guard\n", *_guard(), *_plugins()]
    parts += ["## Other files\n"]
    parts += [
        "### Settings of a benchmark\n",
        "For `ttsa-guard bench run FILE`.\n",
        _table(BenchConfig),
    ]
    parts += [
        "### Settings of a plan\n",
        "For `ttsa-guard plan --config FILE`.\n",
        _table(PlanConfig),
    ]
    parts += ["### Profile of a model\n", "`ttsa-guard profile MODEL` writes it as JSON.\n"]
    parts += [_table(ModelProfile)]
    return "\n".join(parts)


def _guard() -> Iterator[str]:
    shown: dict[type[BaseModel], str] = {}
    for key, field in GuardConfig.model_fields.items():
        yield f"### {key}\n"
        yield f"{_sentence(field)}\n"
        nested = _nested(field.annotation)
        default = "" if _is_settings(field.annotation) else _default(field, _default_of(field))
        facts = (("type", _type(field.annotation)), ("default", default), ("range", _range(field)))
        yield "".join(f"* {name}: {value}\n" for name, value in facts if value)
        if nested in shown:
            yield f"The keys of each are those of [`{shown[nested]}`](#{shown[nested]}).\n"
        elif nested:
            shown[nested] = key
            yield _table(nested)
        yield f"```yaml\n{EXAMPLES[key]}\n```\n"


def _plugins() -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [one for one in installed(imported) if one.package.startswith("ttsa-guard ")]
    for kind, title in KINDS.items():
        yield f"## {title}\n"
        yield (
            f"Options of the {title.lower()} in the package, each under `options` beside its"
            " `use`.\n"
        )
        for one in found:
            if kind in one.options:
                yield f"### {one.name}\n"
                yield _table(one.options[kind])


def _table(model: type[BaseModel]) -> str:
    lines = ["| key | type | default | range | meaning |", "|---|---|---|---|---|", *_rows(model)]
    return "\n".join(lines) + "\n"


def _rows(
    model: type[BaseModel], above: str = "", instance: BaseModel | None = None
) -> Iterator[str]:
    """Yield a line for each key, of nested models too; `instance` may have other defaults."""
    for name, field in model.model_fields.items():
        key, value = f"{above}{name}", _default_of(field, instance and getattr(instance, name))
        default = "" if _is_settings(field.annotation) else _default(field, value)
        cells = [f"`{key}`", _type(field.annotation), default, _range(field), _sentence(field)]
        yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"
        nested = _nested(field.annotation)
        if nested and set(nested.model_fields) != {"use", "options"}:
            below = f"{key}." if _is_mapping(field.annotation) else f"{key}[]."
            yield from _rows(nested, below, value if isinstance(value, nested) else None)


def _default_of(field: FieldInfo, value: Any = None) -> Any:
    required = field.is_required()
    return value if value is not None or required else field.get_default(call_default_factory=True)


def _nested(annotation: Any) -> type[BaseModel] | None:
    """Return the model of a setting's mappings, if it holds any."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for a in get_args(annotation) if (m := _nested(a))), None)


def _is_mapping(annotation: Any) -> bool:
    """Whether a setting is one mapping, and not a list of them."""
    if get_origin(annotation) in (Union, UnionType):
        return any(map(_is_mapping, get_args(annotation)))
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _is_settings(annotation: Any) -> bool:
    """Whether a setting is a mapping of keys that have defaults of their own."""
    return (
        isinstance(annotation, type)
        and issubclass(annotation, BaseModel)
        and not _is_plugin(annotation)
    )


def _is_plugin(model: type[BaseModel]) -> bool:
    return "use" in model.model_fields


def _type(annotation: Any) -> str:
    """Return a type in the words of somebody who writes YAML."""
    origin, members = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{_scalar(m)}`" for m in members)
    if origin in (Union, UnionType):
        return " or ".join("`null`" if m is NoneType else _type(m) for m in members)
    if origin in (tuple, list):
        return f"list of {_plural(members[0])}" if Ellipsis in members or origin is list else "list"
    if origin is not None:
        return "mapping"
    if issubclass(annotation, BaseModel):
        return "plugin" if _is_plugin(annotation) else "mapping"
    if issubclass(annotation, Enum):
        return " or ".join(f"`{m.value}`" for m in annotation)
    return {float: "number", int: "integer", bool: "`true` or `false`", str: "text", Path: "path"}[
        annotation
    ]


def _plural(annotation: Any) -> str:
    word = _type(annotation)
    return f"{word}s" if word.isalpha() else word


def _default(field: FieldInfo, value: Any) -> str:
    return "required" if field.is_required() else f"`{_scalar(_plain(value))}`"


def _plain(value: Any) -> Any:
    """Return a default as YAML would have it; a plugin without options is its name."""
    if isinstance(value, BaseModel):
        data = {k: v for k, v in value if k in value.model_fields_set}
        return data["use"] if set(data) == {"use"} else {k: _plain(v) for k, v in data.items()}
    if isinstance(value, tuple | list | set | frozenset):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return str(value) if isinstance(value, Path) else value


def _scalar(value: Any) -> str:
    if value in ("", None, True, False) and not isinstance(value, int | float):
        return json.dumps(value)
    if isinstance(value, float) and len(repr(value)) > 8:
        return f"{value:.4g}"
    text = yaml.safe_dump(
        value, default_flow_style=True, width=10_000, allow_unicode=True, sort_keys=False
    )
    return text.removesuffix("...\n").strip().replace("\n", " ")


def _range(field: FieldInfo) -> str:
    """Return the limits that a value must keep."""
    words = {
        "ge": "≥ {}",
        "gt": "> {}",
        "le": "≤ {}",
        "lt": "< {}",
        "min_length": "at least {} long",
    }
    found = []
    for limit in field.metadata:
        for name, word in words.items():
            if (value := getattr(limit, name, None)) is not None:
                found.append(
                    "not empty" if (name, value) == ("min_length", 1) else word.format(value)
                )
    return ", ".join(found)


def _sentence(field: FieldInfo) -> str:
    """Return a description as a sentence on one line; the setting's own values in it are code."""
    text = " ".join((field.description or "").split())
    for value in _values(field.annotation):
        text = re.sub(rf"(?<!`)\b{re.escape(value)}:", f"`{value}`:", text)
    end = "" if text.endswith((".", "!", "?")) else "."
    first = text.split()[0].strip(",;:")
    own = first == field.default or not first.isalpha()
    return (text if own else text[0].upper() + text[1:]) + end


def _values(annotation: Any) -> Iterator[str]:
    if get_origin(annotation) is Literal:
        yield from filter(str.isidentifier, map(str, get_args(annotation)))
    for inner in get_args(annotation):
        yield from _values(inner)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
