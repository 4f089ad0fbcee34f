"""Write `ttsa_guard/settings.schema.json` from the models that check the settings: `python
docs/make_schema.py`.
"""

from __future__ import annotations

import json
import warnings
from typing import cast

from ttsa_guard.cli.listing import imported, installed
from ttsa_guard.plugins import Kind
from ttsa_guard.schema import FILE, add_options, settings_schema


def text() -> str:
    """Return the whole file."""
    schema = settings_schema()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [one for one in installed(imported) if one.package.startswith("ttsa-guard ")]
        for one in found:
            for kind, options in one.options.items():
                add_options(schema, cast("Kind", f"{kind}s"), one.name, options)
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
