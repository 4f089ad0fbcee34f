"""Call our flow from the output rails of an app in Colang 2.x, and leave all else as it is."""

from __future__ import annotations

import re
from collections.abc import Collection
from itertools import takewhile

from ttsa_guard.nemo.names import FLOW

NEW = f"""\
import core
import llm
import guardrails

flow main
  activate chat

flow chat
  user said something as $u
  global $user_message
  $answer = await PassthroughLLMAction(user_message=$user_message)
  bot say $answer

flow output rails $output_text
  {FLOW}
"""
"""The Colang file of a new app, which does nothing but ask the model."""
_OUTPUT_RAILS = re.compile(
    r'^flow output rails\b[^\n]*\n(?:[ \t]*\n)*(?:[ \t]+"""[^"]*"""[ \t]*\n)?', re.MULTILINE
)
"""Matches the head of the flow, with its description."""
_INDENT = re.compile(r"[ \t]+")


def has_output_rails(text: str) -> bool:
    """Return whether a Colang file defines the flow ``output rails``."""
    return bool(_OUTPUT_RAILS.search(text))


def with_our_flow(text: str, *, without: Collection[str] = ()) -> str:
    """Return a Colang file whose output rails call our flow first.

    Args:
        without: the rails that are taken out of them.
    """
    if not (found := _OUTPUT_RAILS.search(text)):
        return f"{text.rstrip()}\n\nflow output rails $output_text\n  {FLOW}\n"
    lines = text[found.end() :].splitlines(keepends=True)
    body = list(takewhile(lambda line: not line.strip() or line[0] in " \t", lines))
    indent = next((m[0] for line in body if line.strip() and (m := _INDENT.match(line))), "  ")
    kept = [line for line in body if line.strip() not in (*without, FLOW)]
    return text[: found.end()] + f"{indent}{FLOW}\n" + "".join([*kept, *lines[len(body) :]])


def importing(text: str, module: str) -> str:
    """Return a Colang file that imports `module`."""
    if re.search(rf"^import +{re.escape(module)}[ \t]*$", text, re.MULTILINE):
        return text
    return f"import {module}\n{text}"
