"""Look at the folder in which a guard is to be set up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ttsa_guard.checking.folder import HostFolder
from ttsa_guard.config import HOST_KEYS
from ttsa_guard.errors import ConfigError
from ttsa_guard.nemo.names import ENGINE, FLOW
from ttsa_guard.service import base_address
from ttsa_guard.settings import read_yaml
from ttsa_guard.setup.answers import OPENAI, Chat, Host

SETTINGS_FILE = "settings.yml"
"""The guard's settings where there is no host."""
_NIM = "https://integrate.api.nvidia.com/v1"
_ENGINES: Mapping[str, tuple[str, str | None]] = {
    "openai": (OPENAI, "OPENAI_API_KEY"),
    "nim": (_NIM, "NVIDIA_API_KEY"),
    "nvidia_ai_endpoints": (_NIM, "NVIDIA_API_KEY"),
    "ollama": ("http://localhost:11434/v1", None),
}
"""The host's engines that speak OpenAI's protocol: address, and the variable with the key."""


@dataclass(frozen=True)
class Place:
    """A folder, and what is in it.

    Args:
        host: what it holds a configuration of; None if it holds none.
        app: the app's files, if it holds an app.
        chat: the chat model, if one can tell how to ask it.
        settings: the guard's settings that are there.
        checks: the app's output rails that can be a gate.
    """

    folder: Path
    host: Host | None = None
    app: HostFolder | None = None
    chat: Chat | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    checks: tuple[str, ...] = ()


def survey(folder: Path) -> Place:
    """Look at a folder, which need not exist.

    Raises:
        ConfigError: it is a file, or a file in it cannot be read.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file", hint="name a folder, such as my_app")
    own = [*folder.glob("*.yml"), *folder.glob("*.yaml")]
    held = {path.name: _keys(path) for path in own}
    if any(HOST_KEYS & keys for keys in held.values()):
        return _app(folder)
    if held.get(SETTINGS_FILE):
        settings = read_yaml(folder / SETTINGS_FILE, hint="mend the file first")
        return Place(folder, "none", chat=_behind(settings), settings=settings)
    return Place(folder)


def yaml_files(folder: Path) -> list[Path]:
    """Return the YAML files that the host reads in a folder, in order."""
    return sorted(p for p in host_files(folder) if p.suffix in (".yml", ".yaml"))


def host_files(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder that make an app: YAML, Colang and ``config.py``."""
    for path in sorted(folder.rglob("*")):
        documents = path.relative_to(folder).parts[0].startswith("kb")
        wanted = path.suffix in (".yml", ".yaml", ".co") or path == folder / "config.py"
        if wanted and not documents and path.is_file():
            yield path


def _keys(path: Path) -> set[str]:
    found = read_yaml(path, hint="mend the file first")
    return set(found) if isinstance(found, Mapping) else set()


def _app(folder: Path) -> Place:
    app = HostFolder.read(folder)
    settings = app.settings if isinstance(app.settings, Mapping) else {}
    host: Host = "colang-1" if app.version == "1.0" else "colang-2"
    chat = _chat(app)
    if chat and chat.kind == "local":
        behind = _behind(settings)
        chat = behind if behind and behind.kind == "vllm" else chat
    return Place(folder, host, app, chat, settings, tuple(_checks(app.output_rails())))


def _chat(app: HostFolder) -> Chat | None:
    """Return the app's chat model; None if it has none, or one that does not speak OpenAI's
    protocol.
    """
    models = app.data.get("models")
    listed = [m for m in models if isinstance(m, Mapping)] if isinstance(models, list) else []
    main = next((m for m in listed if m.get("type") == "main"), None)
    if main is None:
        return None
    engine, parameters = str(main.get("engine")), main.get("parameters")
    given = parameters if isinstance(parameters, Mapping) else {}
    model = str(main.get("model") or given.get("model") or "")
    if engine == ENGINE:
        return Chat("local", model)
    usual_url, usual_key = _ENGINES.get(engine, ("", None))
    url = str(given.get("base_url") or usual_url)
    key = main.get("api_key_env_var") or usual_key
    return Chat("api", model, url, str(key) if key else None) if url and model else None


def _behind(settings: Mapping[str, Any]) -> Chat | None:
    """Return the chat model that settings without a host name; None if they name none."""
    backend = settings.get("backend")
    options = backend.get("options") if isinstance(backend, Mapping) else None
    if not isinstance(backend, Mapping) or not isinstance(options, Mapping):
        return None
    model, key = str(options.get("model", "")), options.get("key")
    if backend.get("use") == "chat_completions":
        return Chat("api", model, str(options.get("url", "")), str(key) if key else None)
    urls = options.get("urls")
    if backend.get("use") == "vllm" and urls:
        url = str(urls if isinstance(urls, str) else urls[0])
        return Chat("vllm", model, base_address(url), str(key) if key else None)
    return None


def _checks(rails: Iterable[str]) -> Iterator[str]:
    """Yield the rails that check an answer and need nothing but its text and the question."""
    candidates = [rail for rail in rails if "check" in rail.split() and rail != FLOW]
    if not candidates or find_spec("nemoguardrails") is None:
        return
    from ttsa_guard.nemo.gate import NemoRail, NemoRailOptions  # they bring the host's modules

    for rail in candidates:
        try:
            NemoRail(NemoRailOptions(flow=rail))
        except ConfigError:
            continue
        yield rail
