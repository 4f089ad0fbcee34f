"""Renders the templates, each of which is a whole page: style and script are in it.

A page loads nothing, and a browser runs no other script in it: its content security policy names
the script by its hash. Everything that a template is given is escaped.
"""

from __future__ import annotations

import base64
import hashlib
from functools import lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def render(template: str, *, script: str = "", **values: Any) -> str:
    """Return the page that `template` makes of `values`.

    Args:
        script: the name of the script beside the template; none if the page is still.
    """
    pages = _environment()
    source = ""
    if script:
        source, _, _ = pages.loader.get_source(pages, script)  # type: ignore[union-attr]
        source = source.replace("\r\n", "\n")  # as the browser does before it takes the hash
    digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
    allowed = f"'sha256-{digest}'" if source else "'none'"
    return pages.get_template(template).render(
        script=Markup(source), allowed_script=Markup(allowed), **values
    )


@lru_cache(maxsize=1)
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("ttsa_guard.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
