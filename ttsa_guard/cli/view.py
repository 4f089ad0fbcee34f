"""``ttsa-guard view``: the reviews of an audit file as a page."""

from __future__ import annotations

import json
import os
import tempfile
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ttsa_guard.cli import audit, common
from ttsa_guard.errors import ConfigError
from ttsa_guard.files import ready_file, reason

if TYPE_CHECKING:
    from ttsa_guard.pages.reviews import Audit

LAST = 20_000


def view(
    file: Annotated[
        Path, typer.Argument(help="Audit records, one JSON object a line.", show_default=False)
    ],
    html: Annotated[
        Path | None,
        typer.Option(help="Write the page to this file, and open nothing.", show_default=False),
    ] = None,
    do_open: Annotated[
        bool, typer.Option("--open/--no-open", help="Open the page in the browser.")
    ] = True,
    last: Annotated[
        int, typer.Option(min=1, help="Reviews to show one by one; all of them are counted.")
    ] = LAST,
    as_json: common.AsJson = False,
) -> None:
    """Look at the reviews in an audit file: counts, trends, and each review by itself.

    The page is one file that loads nothing. It holds texts only if the audit does. With --json the
    counts are printed, and there is a page only with --html.

    Example: ttsa-guard view audit.jsonl
    """
    from ttsa_guard.pages.reviews import read

    if html and html.exists() and file.exists() and html.samefile(file):
        raise ConfigError(f"--html would overwrite {file}", hint="name another file for the page")
    if html:
        ready_file(html, "--html")
    with common.waiting(f"reading {file}"):
        found = read(file, last=last)
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=1))
    if html or not as_json:
        _tell(_written(found, html), found, browse=do_open and not html)
    audit.tell_skipped(file, found.summary)


def _written(found: Audit, html: Path | None) -> Path:
    """Write the page and return its file: `html`, or a new one that only this user can read."""
    from ttsa_guard.pages.reviews import page

    with common.waiting("making the page"):
        content = page(found).encode("utf-8", "replace")
    try:
        if html is None:
            handle, name = tempfile.mkstemp(prefix="ttsa-guard-", suffix=".html")
            os.close(handle)
            html = Path(name)
        html.write_bytes(content)
    except OSError as error:
        raise ConfigError(
            f"cannot write {html or 'the page'}: {reason(error)}",
            hint="name a file in a folder that exists: --html FILE",
        ) from None
    return html.resolve()


def _tell(written: Path, found: Audit, *, browse: bool) -> None:
    opened = browse and webbrowser.open(written.as_uri())
    lead = "opened" if opened else "no browser was found; open" if browse else "written:"
    common.err.print(f"{lead} {written}", markup=False, soft_wrap=True)
    if found.has_texts:
        common.err.print("the page holds moderated texts: protect it", style="yellow")
