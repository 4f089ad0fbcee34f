"""The JSON schema of a guard's settings, for editors and for checks that load nothing.

`ttsa_guard/settings.schema.json` has the settings and the options of the plugins in this package.
``python docs/make_schema.py`` writes it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ttsa_guard.config import AUTO, GuardConfig
from ttsa_guard.plugins import KINDS, Kind

FILE = Path(__file__).parent / "settings.schema.json"
PLACES: dict[str, Kind] = {
    "gate": "moderators",
    "guide": "moderators",
    "image_gate": "image_moderators",
    "steerers": "steerers",
    "steerers_for_harm": "steerers",
    "backend": "backends",
}
"""The kind of plugin that each setting names."""


def shipped_schema() -> dict[str, Any]:
    """Return the schema in the package: all settings, and the options of its own plugins."""
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def settings_schema() -> dict[str, Any]:
    """Return the schema of all settings, without the options of any plugin.

    A plugin may be just its name, and where several can stand, one needs no list.
    """
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **GuardConfig.model_json_schema(),
        "title": "Settings of ttsa-guard",
    }
    uses = {kind: schema["$defs"]["Member" if kind == "moderators" else "Use"] for kind in KINDS}
    for kind, use in uses.items():
        names = [AUTO] if kind == "moderators" else []
        schema["$defs"][kind] = {
            "anyOf": [{"enum": names}, {"type": "string"}, {**use, "allOf": []}]
        }
        one = {"$ref": f"#/$defs/{kind}"}
        for key in (place for place, its in PLACES.items() if its == kind):
            field = schema["properties"][key]
            kept = {k: v for k, v in field.items() if k in ("description", "default")}
            choices = [one, {"type": "array", "items": one}]
            none = [{"type": "null"}] if key == "steerers_for_harm" else []
            schema["properties"][key] = {**kept, "anyOf": choices[: 1 if key == "backend" else 2]}
            schema["properties"][key]["anyOf"] += none
    for name in ("Member", "Use"):
        del schema["$defs"][name]
    return schema


def add_options(schema: dict[str, Any], kind: Kind, name: str, options: type[BaseModel]) -> None:
    """Add a plugin to a schema, with the model of its options."""
    made = options.model_json_schema(ref_template=f"#/$defs/{kind}.{name}.{{model}}")
    for nested, found in made.pop("$defs", {}).items():
        schema["$defs"][f"{kind}.{name}.{nested}"] = found
    schema["$defs"][f"{kind}.{name}"] = made
    names, _, use = schema["$defs"][kind]["anyOf"]
    names["enum"].append(name)
    use["allOf"].append(
        {
            "if": {"properties": {"use": {"const": name}}, "required": ["use"]},
            "then": {"properties": {"options": {"$ref": f"#/$defs/{kind}.{name}"}}},
        }
    )


def options_schema(schema: dict[str, Any], kind: Kind, name: str) -> dict[str, Any] | None:
    """Return the schema of a plugin's options, or None if `schema` does not have it."""
    if f"{kind}.{name}" not in schema["$defs"]:
        return None
    return {"$defs": schema["$defs"], **schema["$defs"][f"{kind}.{name}"]}
