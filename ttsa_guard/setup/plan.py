"""Say which files are to be written or amended, and whether they will do."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttsa_guard.checking.folder import OURS, HostFolder, check_folder, resolves
from ttsa_guard.checking.report import Report
from ttsa_guard.checking.settings import check_settings
from ttsa_guard.errors import ConfigError
from ttsa_guard.nemo.names import ENGINE, FLOW, KEY
from ttsa_guard.setup.answers import HOST_RAILS, OPENAI, Answers, Chat, settings_of
from ttsa_guard.setup.colang import NEW, has_output_rails, importing, with_our_flow
from ttsa_guard.setup.documents import Document, below, spelt
from ttsa_guard.setup.place import SETTINGS_FILE, Place, host_files, yaml_files

_HEADER = "# Written by ttsa-guard init. All settings, and what holds: ttsa-guard config show {}\n"
_DOOR = "from ttsa_guard.nemo import init  # noqa: F401\n"
_NEW_DOOR = (
    f'"""NeMo Guardrails runs this when it loads the folder. It sets up the guard."""\n\n{_DOOR}'
)
_INIT = re.compile(r"^(async +)?def +init\b|^from +\S+ +import\b.*\binit\b", re.MULTILINE)

Content = MutableMapping[str, Any]


@dataclass(frozen=True)
class Change:
    """A file, what it holds, and what it is to hold."""

    path: Path
    before: str
    after: str


def plan(place: Place, answers: Answers) -> list[Change]:
    """Return what is to be written; nothing if all is as it should be.

    Raises:
        ConfigError: it cannot be done without losing something.
    """
    settings = settings_of(answers, place.settings, place.checks)
    if answers.host == "none":
        return _changed(_settings_file(place, settings))
    if place.app is None:
        _refuse_strangers(place.folder)
        return [*_changed(_new_app(place.folder, answers, settings)), *_new_code(place, answers)]
    return _amended(place, place.app, answers, settings)


def check(folder: Path, changes: Sequence[Change], answers: Answers) -> Report:
    """Check the files as they would be, in a copy. No model is loaded."""
    report = Report()
    with tempfile.TemporaryDirectory() as made:
        copy = Path(made)
        there = host_files(folder) if answers.host != "none" else folder.glob(SETTINGS_FILE)
        texts = {path: path.read_text(encoding="utf-8") for path in there}
        texts |= {change.path: change.after for change in changes}
        for path, text in texts.items():
            place = copy / path.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8")
        if answers.host == "none":
            document = Document(copy / SETTINGS_FILE)
            check_settings(document.content, report, file=str(document.path))
        else:
            check_folder(copy, report)
    # what is told names the folder itself
    found = Report(expect=report.expect)
    for problem in report.problems:
        where = problem.where.replace(made, str(folder))
        message = problem.message.replace(made, str(folder))
        found.add(where, [ConfigError(message, hint=problem.hint)])
    return found


def write(changes: Sequence[Change]) -> None:
    """Write the files.

    Raises:
        ConfigError: one cannot be written.
    """
    for change in changes:
        try:
            change.path.parent.mkdir(parents=True, exist_ok=True)
            windows = change.path.exists() and b"\r\n" in change.path.read_bytes()
            change.path.write_text(
                change.after, encoding="utf-8", newline="\r\n" if windows else ""
            )
        except OSError as error:
            raise ConfigError(
                f"cannot write {change.path}: {type(error).__name__}",
                hint="allow it, or name another folder",
            ) from None


# ------------------------------------------------------------------ new files


def _settings_file(place: Place, settings: Mapping[str, Any]) -> Document:
    path = place.folder / SETTINGS_FILE
    document = Document(path, header=_HEADER.format(path))
    document.change(lambda content: _set(content, settings))
    return document


def _new_app(folder: Path, answers: Answers, settings: Mapping[str, Any]) -> Document:
    first = answers.host == "colang-1"

    def fill(content: Content) -> None:
        if not first:
            content["colang_version"] = "2.x"
        content["models"] = [spelt(_main_model(answers.chat))]
        if first:
            content["passthrough"] = True
            below(content, "rails", "output")["flows"] = [FLOW]
        _set(below(content, "custom_data", KEY), settings)

    document = Document(folder / "config.yml", header=_HEADER.format(folder))
    document.change(fill)
    return document


def _main_model(chat: Chat) -> dict[str, Any]:
    """Return the host's entry of the chat model."""
    if chat.kind != "api":
        return {"type": "main", "engine": ENGINE, "model": chat.model}
    # The host sends the key of OpenAI to whatever address an engine of that name has.
    engine = "openai" if chat.url == OPENAI else "openai_compatible"
    found: dict[str, Any] = {"type": "main", "engine": engine, "model": chat.model}
    if chat.key and (chat.url, chat.key) != (OPENAI, "OPENAI_API_KEY"):
        found["api_key_env_var"] = chat.key
    if chat.url != OPENAI:
        found["parameters"] = {"base_url": chat.url}
    return found


def _new_code(place: Place, answers: Answers) -> list[Change]:
    found = [Change(place.folder / "config.py", "", _NEW_DOOR)]
    if answers.host == "colang-2":
        found.append(Change(place.folder / "main.co", "", NEW))
    return found


def _refuse_strangers(folder: Path) -> None:
    """Raise where the host would take other files for those of a new app."""
    if (stranger := next(host_files(folder), None)) is not None:
        raise ConfigError(
            f"NeMo Guardrails would read {stranger}, which is there, as a part of the new app",
            hint="name a folder of its own, such as my_app",
        )


# ------------------------------------------------------------------ an app that exists


def _amended(
    place: Place, app: HostFolder, answers: Answers, settings: Mapping[str, Any]
) -> list[Change]:
    documents = [Document(path) for path in yaml_files(place.folder)]
    main = _holding(documents, "models") or documents[0]
    code: list[Change] = []
    taken = place.checks if answers.gate == (HOST_RAILS,) else ()
    if taken or not app.runs():
        flows = _holding(documents, "rails", "output", "flows")
        if flows or answers.host == "colang-1":
            (flows or main).change(lambda content: _call_first(content, taken))
        else:
            code.append(_colang(app, taken))
    home = _holding(documents, "custom_data", KEY) or _holding(documents, "custom_data") or main
    home.change(lambda content: _set(below(content, "custom_data", KEY), settings))
    if not app.imports_rails:
        door = place.folder / "config.py"
        text = door.read_text(encoding="utf-8") if door.exists() else ""
        if _INIT.search(text):
            _import(main)
        else:
            code.append(Change(door, text, _with_door(text)))
    return [*_changed(*documents), *_kept(code)]


def _call_first(content: Content, taken: Sequence[str]) -> None:
    """Make our flow the first of the output rails, and take out those of the gate."""
    output = below(content, "rails", "output")
    flows = output.get("flows")
    if not isinstance(flows, list):
        flows = output["flows"] = []
    places = [i for i, rail in enumerate(flows) if rail in taken]
    if FLOW not in flows:
        if places:
            flows[places.pop(0)] = FLOW  # where it stands, so that comments around it stay
        else:
            flows.insert(0, FLOW)
    for place in reversed(places):
        del flows[place]


def _colang(app: HostFolder, taken: Sequence[str]) -> Change:
    """Call our flow in the Colang files of an app.

    Raises:
        ConfigError: its output rails are in none of them.
    """
    files = [path for path in host_files(app.path) if path.suffix == ".co"]
    texts = {path: path.read_text(encoding="utf-8") for path in files}
    path = next((p for p, text in texts.items() if has_output_rails(text)), None)
    if path is None and has_output_rails(app.colang):
        raise ConfigError(
            f"the flow 'output rails' of {app.path} is in a file that it imports",
            hint=f"add the line there by hand: {FLOW}",
        )
    path = path or app.path / "rails.co"
    text = importing(with_our_flow(texts.get(path, ""), without=taken), "guardrails")
    return Change(path, texts.get(path, ""), text)


def _with_door(text: str) -> str:
    return f"{text.rstrip()}\n\n{_DOOR}" if text.strip() else _NEW_DOOR


def _import(main: Document) -> None:
    """Import our flows by the YAML, where ``config.py`` has an ``init`` of its own."""
    if not resolves(OURS):
        raise ConfigError(
            f"{main.path.parent / 'config.py'} has an init of its own, and the host finds no"
            f" {OURS} here",
            hint="set COLANGPATH to the folder that contains ttsa_guard, and run this again",
        )

    def add(content: Content) -> None:
        paths = content.get("import_paths")
        if not isinstance(paths, list):
            paths = content["import_paths"] = []
        paths.append(OURS)

    main.change(add)


# ------------------------------------------------------------------ parts


def _set(content: Content, settings: Mapping[str, Any]) -> None:
    """Set what is to be set. Other options of a plugin stay, unless it is another plugin."""
    for key, value in settings.items():
        there = content.get(key)
        if value is None:
            content.pop(key, None)
        elif isinstance(there, MutableMapping) and isinstance(value, Mapping):
            if there.get("use") != value.get("use"):
                content[key] = spelt(value)
            else:
                _set(there, value)
        elif there != value:
            content[key] = spelt(value)


def _holding(documents: Sequence[Document], *keys: str) -> Document | None:
    """Return the first document that has something under `keys`."""
    for document in documents:
        part: Any = document.content
        for key in keys:
            part = part.get(key) if isinstance(part, dict) else None
        if part is not None:
            return document
    return None


def _changed(*documents: Document) -> list[Change]:
    return _kept([Change(d.path, d.before, d.text()) for d in documents])


def _kept(changes: Sequence[Change]) -> list[Change]:
    return [change for change in changes if change.before != change.after]
