"""Read a configuration folder of NeMo Guardrails without its modules, and check it.

The folder is read as the host reads it: all YAML files in it, the Colang files, and what
``import_paths`` names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ttsa_guard.checking.report import Report
from ttsa_guard.checking.settings import check_settings, uses_host_rails
from ttsa_guard.config import GuardConfig
from ttsa_guard.errors import ConfigError
from ttsa_guard.files import reason
from ttsa_guard.nemo.names import FLOW, KEY
from ttsa_guard.nemo.problems import (
    colang_2_problems,
    misplaced,
    other_weights,
    output_problems,
    rail_problems,
    unused,
)
from ttsa_guard.nemo.rails import rails_path
from ttsa_guard.settings import read_yaml

OURS = "ttsa_guard/rails"
"""Our flows as an import path."""
_RAILS_MODULE = "ttsa_guard.rails"
_COMMENT = re.compile(r'""".*?"""|#.*?$', re.DOTALL | re.MULTILINE)
_OUTPUT_RAILS = re.compile(r"^flow output rails\b.*\n((?:[ \t]+.*\n|[ \t]*\n)*)", re.MULTILINE)
_IMPORT = re.compile(r"^import +([\w.]+)[ \t]*$", re.MULTILINE)
_DOOR = re.compile(r"^\s*(from|import)\s+ttsa_guard\.nemo\b", re.MULTILINE)


@dataclass
class HostFolder:
    """What the files of a configuration say."""

    path: Path
    data: dict[str, Any] = field(default_factory=dict)
    """All YAML files as one."""
    settings_file: str = ""
    """The file with the guard's settings, or the first one."""
    colang: str = ""
    """All Colang files as one text, without comments."""
    imports_rails: bool = False
    """Whether something brings our flow and our ``init`` in."""
    lost: list[str] = field(default_factory=list)
    """Import paths that lead nowhere."""
    links: dict[str, str] = field(default_factory=dict)
    """Import paths of files in which git has written where a link would lead, and what they say."""

    @classmethod
    def read(cls, path: Path) -> HostFolder:
        """Read a folder.

        Raises:
            ConfigError: it holds no YAML file, or one of its files cannot be read.
        """
        folder = cls(path)
        folder._add(path)
        if not folder.settings_file:
            raise ConfigError(
                f"{path} holds no YAML file",
                hint="give a configuration folder of NeMo Guardrails, with a config.yml",
            )
        imported: list[str] = []
        while waiting := [p for p in folder._import_paths() if p not in imported]:
            imported += waiting
            for name in waiting:
                if not folder._import(name, _roots()):
                    folder.lost.append(name)
        # Only the app's own modules are read: those of the host hold no flow of the app, and the
        # host itself says which are missing.
        while modules := [m for m in _IMPORT.findall(folder.colang) if m not in imported]:
            imported += modules
            for module in modules:
                folder._import(module.replace(".", "/"), _own_roots())
        folder.imports_rails |= _RAILS_MODULE in imported
        return folder

    @property
    def version(self) -> str:
        """The version of Colang, "1.0" or "2.x"."""
        return str(self.data.get("colang_version", "1.0"))

    @property
    def settings(self) -> Any:
        """The guard's settings as they stand in the files; None if there are none."""
        return self.part("custom_data").get(KEY)

    def part(self, *keys: str) -> Mapping[str, Any]:
        """Return the mapping under `keys`; an empty one if there is none."""
        part: Any = self.data
        for key in keys:
            part = part.get(key) if isinstance(part, Mapping) else None
        return part if isinstance(part, Mapping) else {}

    def output_rails(self) -> list[str]:
        """Return the output rails in order."""
        flows = self.part("rails", "output").get("flows")
        if isinstance(flows, list) and (flows or self.version == "1.0"):
            return [str(flow) for flow in flows]
        found = _OUTPUT_RAILS.search(self.colang)
        lines = found[1].splitlines() if found and self.version != "1.0" else []
        return [line.strip() for line in lines if line.strip()]

    def runs(self) -> bool:
        """Return whether an output rail of the app is ours, or calls it."""
        if self.version == "1.0":
            return FLOW in self.output_rails() or FLOW in self.colang
        chain = {"guardrails", _RAILS_MODULE} & {*_IMPORT.findall(self.colang)}
        return bool(chain) and FLOW in self.output_rails()

    def _import_paths(self) -> list[str]:
        paths = self.data.get("import_paths")
        return [str(name) for name in paths] if isinstance(paths, list) else []

    def _import(self, name: str, roots: list[Path]) -> bool:
        """Add an imported folder or Colang file, and return whether there is one."""
        # the host adds the ending to what it looks up elsewhere, not in the current folder
        elsewhere = [root / f"{name}{end}" for root in roots for end in ("", ".co")]
        place = next((p for p in (Path(name), *elsewhere) if p.exists()), None)
        if place is None:
            return False
        if place.is_file() and place.suffix != ".co":
            self.links[name] = _text(place).strip()
            return True
        if place.resolve() == Path(rails_path()).resolve():
            self.imports_rails = True
            self.colang += "import guardrails\n"  # as our flows do
        else:
            self._add(place)
        return True

    def _add(self, path: Path) -> None:
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            if path.is_dir() and file.relative_to(path).parts[0].startswith("kb"):
                continue  # documents, for the host
            if file.suffix in (".yml", ".yaml"):
                read = read_yaml(file, hint="mend the file; NeMo Guardrails cannot read it, either")
                content = read if isinstance(read, Mapping) else {}
                custom = content.get("custom_data")
                if not self.settings_file or (isinstance(custom, Mapping) and KEY in custom):
                    self.settings_file = str(file)
                _join(self.data, content)
            elif file.suffix == ".co":
                self.colang += _COMMENT.sub("", _text(file)) + "\n"
            elif file.name == "config.py" and file.parent == path:
                self.imports_rails |= bool(_DOOR.search(_text(file)))


def check_folder(path: Path, report: Report) -> GuardConfig | None:
    """Check a configuration folder of NeMo Guardrails, and add what is found to `report`.

    Raises:
        ConfigError: it holds no YAML file, or one of its files cannot be read.
    """
    folder = HostFolder.read(path)
    file = folder.settings_file
    if folder.settings is None:
        report.note(f"no custom_data.{KEY} in {path}: the guard's defaults are used")
    config = check_settings(folder.settings, report, file=file, hosted=True)
    if find_spec("nemoguardrails") is None:
        missing = ConfigError("nemoguardrails is not installed", hint="pip install nemoguardrails")
        report.add(file, [missing])
    report.add(str(path), _host_problems(folder))
    if config is not None:
        single_call = bool(folder.part("rails", "dialog", "single_call").get("enabled"))
        rails, checks = folder.output_rails(), uses_host_rails(config)
        report.add(str(path), rail_problems(rails, config, checks, single_call=single_call))
        report.add(str(path), other_weights(_models(folder), config.backend))
    return config


def _host_problems(folder: HostFolder) -> Iterator[ConfigError]:
    yield from misplaced([*folder.path.glob("*.yml"), *folder.path.glob("*.yaml")])
    for name in folder.lost:
        yield ConfigError(
            f"import_paths: {name!r} leads nowhere",
            hint=(
                "it is looked up in the current folder, in COLANGPATH and beside nemoguardrails;"
                f" for {OURS} a config.py does, too: from ttsa_guard.nemo import init"
            ),
        )
    for name, target in folder.links.items():
        yield ConfigError(
            f"import_paths: {name!r} is a file, and no folder or Colang file",
            hint=(
                f"where git cannot make links, as on Windows, it writes such files: give {target!r}"
                " itself, or a config.py: from ttsa_guard.nemo import init"
                if target == OURS
                else "give a folder, or a file that ends with .co"
            ),
        )
    if not folder.imports_rails and not folder.links and OURS not in folder.lost:
        yield ConfigError(
            "nothing brings the guard into this configuration",
            hint=f"add import_paths: [{OURS}], or a config.py: from ttsa_guard.nemo import init",
        )
    output = folder.part("rails", "output")
    streaming = bool(folder.part("rails", "output", "streaming").get("enabled"))
    yield from output_problems(parallel=bool(output.get("parallel")), streaming=streaming)
    if folder.version == "1.0":
        if not folder.runs():
            yield unused()
    else:
        tracing = bool(folder.part("tracing").get("enabled"))
        yield from colang_2_problems(runs=folder.runs(), tracing=tracing)


def _models(folder: HostFolder) -> list[tuple[str, Any]]:
    models = folder.data.get("models")
    entries = [m for m in models if isinstance(m, Mapping)] if isinstance(models, list) else []
    return [(str(m.get("engine")), m.get("model")) for m in entries]


def resolves(name: str) -> bool:
    """Return whether an import path leads somewhere, whatever the current folder is."""
    return any((root / name).exists() for root in _roots())


def _own_roots() -> list[Path]:
    """Return the folders in COLANGPATH."""
    named = [p.strip() for p in os.environ.get("COLANGPATH", "").split(os.pathsep)]
    return [Path(p) for p in named if p]


def _roots() -> list[Path]:
    """Return the folders in which the host looks import paths up, besides the current one."""
    spec = find_spec("nemoguardrails")
    host = [Path(p) for p in (spec.submodule_search_locations or ())] if spec else []
    beside = [place for p in host for place in (p / "colang" / "v2_x" / "library", p.parent)]
    return [*_own_roots(), *beside]


def _join(into: dict[str, Any], content: Mapping[str, Any]) -> None:
    """Add the content of a file to what other files say."""
    for key, value in content.items():
        there = into.get(key)
        if isinstance(there, dict) and isinstance(value, Mapping):
            _join(there, value)
        elif isinstance(there, list) and isinstance(value, list):
            into[key] = there + [item for item in value if item not in there]
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot read {file}: {reason(error)}", hint="it must be text in UTF-8"
        ) from None
