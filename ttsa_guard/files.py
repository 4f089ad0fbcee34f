"""Files that a user names: why one cannot be read, and whether one can be written.

And files that keep the state of long work, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ttsa_guard import __version__
from ttsa_guard.errors import ConfigError, TTSAError

T = TypeVar("T")


class RepeatedKeyError(yaml.MarkedYAMLError):
    """A mapping in a YAML file has the same key twice."""


def reason(error: BaseException) -> str:
    """Return in words why a file cannot be read or written; nothing in the file is quoted."""
    words: dict[type[BaseException] | tuple[type[BaseException], ...], str] = {
        FileNotFoundError: "there is no such file",
        IsADirectoryError: "it is a folder",
        (NotADirectoryError, FileExistsError): "there is a file where a folder should be",
        PermissionError: "this user may not",
        UnicodeError: "it is not text in UTF-8",
        RepeatedKeyError: "a key stands there twice",
        yaml.YAMLError: "it is not YAML",
        (EOFError, zlib.error): "it is cut off or damaged",
    }
    found = (told for kinds, told in words.items() if isinstance(error, kinds))
    told = error.strerror if isinstance(error, OSError) else None
    return next(found, told or type(error).__name__)


def ready_file(path: Path, option: str = "--out", *, make: bool = False) -> None:
    """Check before the work that a file can be written afterwards.

    Args:
        make: whether its folder is made if it is not there.

    Raises:
        ConfigError: it is a folder, or its folder is not there; the hint names `option`.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a folder", hint=f"name a file in it: {option} {path}/FILE")
    if make:
        ready_folder(path.parent, option)
    elif not path.parent.is_dir():
        raise ConfigError(
            f"there is no folder {path.parent}", hint=f"make it first, or change {option}"
        )


def ready_folder(path: Path, option: str = "--out") -> None:
    """Make a folder for results, and those that it is in.

    Raises:
        ConfigError: it cannot be made; the hint names `option`.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot make the folder {path}: {reason(error)}",
            hint=f"name another folder: {option} FOLDER",
        ) from None


def cache_folder() -> Path:
    """Return the folder of what we keep for later. It need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ttsa_guard"


def state_file(path: Path, *asked: Any) -> Path:
    """Return the file beside `path` that keeps the state of the work on it until that is done.

    Args:
        asked: what the result depends on, as plain data. A digest of it and of our version is in
            the name, so that no run goes on from the state of another one.
    """
    digest = hashlib.sha256(json.dumps([__version__, *asked]).encode()).hexdigest()
    return path.with_suffix(f".{digest[:12]}.part")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a file to write, which takes the place of `path` when all of it is written.

    If the writing is stopped, `path` is what it was before.
    """
    path = path.resolve()
    fresh = path.with_name(f"{path.name}.new")
    try:
        yield fresh
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def read_state(path: Path, parse: Callable[[bytes], T]) -> T | None:
    """Return what a run that was stopped has kept, or None if it has kept nothing.

    Raises:
        ConfigError: the file cannot be read, or `parse` says that it is damaged.
    """
    try:
        return parse(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, TTSAError) as error:
        why = reason(error) if isinstance(error, OSError) else "it is damaged"
        raise ConfigError(
            f"cannot go on from {path}: {why}", hint="remove it to begin again"
        ) from None


def read_state_lines(path: Path, parse: Callable[[bytes], T]) -> list[T]:
    """Return the lines that a run that was stopped has kept. One that was cut off is removed.

    Raises:
        ConfigError: the file cannot be read, or `parse` says that a line is damaged.
    """

    def whole(written: bytes) -> list[T]:
        end = written.rfind(b"\n") + 1
        found = [parse(line) for line in written[:end].splitlines()]
        if end < len(written):
            os.truncate(path, end)
        return found

    return read_state(path, whole) or []
