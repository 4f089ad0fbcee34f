"""Files that a user names: why one cannot be read, and whether one can be written."""

from __future__ import annotations

import zlib
from pathlib import Path

import yaml

from ttsa_guard.errors import ConfigError


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
