"""Change a YAML file and leave everything else in it as it was written.

Comments, quotes, the order of keys and the spelling of values stay.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import RoundTripRepresenter
from ruamel.yaml.resolver import VersionedResolver
from ruamel.yaml.scalarstring import DoubleQuotedScalarString
from ruamel.yaml.util import load_yaml_guess_indent

from ttsa_guard.errors import ConfigError

_USUAL = "a:\n  - b\n"
"""A text with the indentation of new files."""


class _AsWritten(VersionedResolver):
    """Take every plain scalar for a text, so that `False`, `~` and `0.10` are written as before."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is ScalarNode and implicit[0]:
            return self.DEFAULT_SCALAR_TAG
        return super().resolve(kind, value, implicit)


class _Spelt(RoundTripRepresenter):
    """Write new booleans as what `_AsWritten` reads."""


_Spelt.add_representer(bool, lambda self, value: self.represent_str("true" if value else "false"))


class Document:
    """A YAML file that holds a mapping, or one that is to be made.

    Args:
        path: where it is.
        header: comments for the beginning of a new file.

    Raises:
        ConfigError: it cannot be read, or it holds something else than a mapping.
    """

    def __init__(self, path: Path, *, header: str = "") -> None:
        self.path, self._header = path, ""
        try:
            self.before = path.read_text(encoding="utf-8") if path.exists() else ""
            content: Any = yaml.safe_load(self.before)
            self._yaml = _round_trip(self.before)
            self._data: Any = self._yaml.load(self.before)
        except (OSError, ValueError, yaml.YAMLError, YAMLError) as error:
            # It is not chained, because a YAML error quotes the line, which may hold a secret.
            raise ConfigError(
                f"cannot read {path}: {type(error).__name__}", hint="mend the file first"
            ) from None
        if content is None:
            content, self._data, self._header = {}, CommentedMap(), self.before or header
        if not isinstance(content, dict):
            raise ConfigError(f"{path} holds no mapping", hint="mend the file first")
        self.content: dict[str, Any] = content
        """What it holds, as plain data."""

    def change(self, work: Callable[[MutableMapping[str, Any]], None]) -> None:
        """Have `work` change the content. It is called twice: with plain data, and as written."""
        work(self.content)
        work(self._data)

    def text(self) -> str:
        """Return the file as it is to be.

        Raises:
            ConfigError: it cannot be written without changing something else in it.
        """
        if (yaml.safe_load(self.before) or {}) == self.content:
            return self.before
        out = io.StringIO()
        self._yaml.dump(self._data, out)
        text = self._header + out.getvalue()
        if yaml.safe_load(text) != self.content:
            raise ConfigError(
                f"{self.path} cannot be amended without changing something else in it",
                hint="amend it by hand, or start with a new folder",
            )
        return text


def _round_trip(text: str) -> YAML:
    """Return a reader and writer that keeps the indentation of `text`."""
    found = YAML()
    found.Resolver, found.Representer = _AsWritten, _Spelt
    found.preserve_quotes = True
    found.width = 10**6
    _, sequence, offset = load_yaml_guess_indent(text or _USUAL)
    if sequence is None or offset is None:
        sequence, offset = 4, 2
    found.indent(mapping=2, sequence=sequence, offset=offset)
    return found


def below(data: MutableMapping[str, Any], *keys: str) -> MutableMapping[str, Any]:
    """Return the mapping under `keys`. What is missing, or empty, is made."""
    for key in keys:
        if not isinstance(data.get(key), MutableMapping):
            data[key] = {}
        data = data[key]
    return data


def spelt(value: Any) -> Any:
    """Return a value for a document, with quotes around texts that YAML would read otherwise."""
    if isinstance(value, Mapping):
        return {key: spelt(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [spelt(item) for item in value]
    return DoubleQuotedScalarString(value) if isinstance(value, str) and _misread(value) else value


def _misread(text: str) -> bool:
    try:
        return bool(yaml.safe_load(text) != text)
    except yaml.YAMLError:
        return True
