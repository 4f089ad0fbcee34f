"""Whether the wheel works with the oldest and the newest Python: `python tests/smoke.py 3.10 3.13`.

A version that this machine lacks is noted, and is no failure. What is downloaded is small: torch,
transformers and NeMo Guardrails are left out, so only what needs none of them is run.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from email import message_from_bytes
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "nemoguardrails")
EXTRAS = ("PIL", "matplotlib", "moocore", "opentelemetry", "scipy", "simpy", "sklearn")
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "NOTICE")
IMPORTS = f"""
import importlib, pathlib, sys, ttsa_guard
root = pathlib.Path(ttsa_guard.__file__).parent
found = sorted(p for p in root.rglob("*.py") if p.stem != "__init__")
imported = 0
for path in found:
    name = ".".join(("ttsa_guard", *path.relative_to(root).with_suffix("").parts))
    try:
        importlib.import_module(name)
        imported += 1
    except ModuleNotFoundError as error:
        assert error.name.split(".")[0] in {(*HEAVY, *EXTRAS)!r}, (name, error)
assert imported > len(found) // 2, (imported, len(found))
print(f"{{imported}} of {{len(found)}} modules import without heavy packages and extras")
"""
REMOTE = """
import asyncio, sys
from pathlib import Path
from ttsa_guard import Guard, GuardConfig
guard = Guard.from_config(GuardConfig.load(Path(sys.argv[1])))
outcome = asyncio.run(guard.review("How is it done?", "Look at a photo and draw its shapes."))
assert outcome.action == "pass", outcome.record
"""
AUDIT = """
import sys, time
from pathlib import Path
from ttsa_guard.audit import AuditSink
from ttsa_guard.record import AuditRecord
AuditSink(Path(sys.argv[1])).write(AuditRecord("1", time.time(), "pass", "clear", 0.1, None))
"""


def interpreter(version: str) -> str | None:
    """Return the Python of a version: the one on the PATH that runs, or else pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    installed = sorted(pyenv.glob(f"versions/{version}.*/bin/python"))
    for found in (shutil.which(f"python{version}"), *map(str, reversed(installed))):
        # what pyenv puts on the PATH fails where the version is not chosen
        if found and subprocess.run([found, "-c", ""], capture_output=True).returncode == 0:
            return found
    return None


def pip(*words: str | Path) -> None:
    """Run pip, and show what it says only where it fails."""
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", *words)


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Return what a command prints; end with all that it said where it fails."""
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def wheel(folder: Path) -> Path:
    """Build the wheel from a copy: building writes beside the sources and reads leftovers."""
    source = folder / "source"
    shutil.copytree(
        ROOT / "ttsa_guard", source / "ttsa_guard", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in SOURCES:
        shutil.copy(ROOT / name, source / name)
    pip("wheel", "--quiet", "--no-deps", "--wheel-dir", folder, source)
    [built] = folder.glob("*.whl")
    return built


def light(built: Path) -> list[str]:
    """Return what the wheel requires, without extras and without the heavy packages."""
    with ZipFile(built) as archive:
        [name] = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        required = message_from_bytes(archive.read(name)).get_all("Requires-Dist", [])
    return [r for r in required if "extra ==" not in r and re.split(r"[^\w-]", r)[0] not in HEAVY]


def smoke(python: str, built: Path, folder: Path) -> None:
    """Install the wheel for one Python, and run what needs no model."""
    run(python, "-m", "venv", "--without-pip", folder)
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    own, command = scripts / "python", scripts / "ttsa-guard"
    pip("--python", own, "install", "--quiet", *light(built))
    pip("--python", own, "install", "--quiet", "--no-deps", "--no-compile", built)
    run(own, "-W", "error", "-c", "import ttsa_guard", cwd=folder)
    print(run(own, "-W", "error", "-c", IMPORTS, cwd=folder), end="")
    package = run(own, "-c", "import ttsa_guard; print(ttsa_guard.__path__[0])", cwd=folder).strip()
    run(own, "-W", "error", "-m", "compileall", "-q", "-f", package)
    assert "Usage:" in run(command, "--help")
    assert "transformers" in run(command, "plugins")
    assert "pass" in run(command, "check", "--moderator", "lite", "What a lovely day.")
    remote = ("--host", "none", "--chat", "api", "--model", "m", "--gate", "lite", "--yes")
    assert "Try it:" in run(command, "init", folder / "app", *remote)
    run(own, "-c", REMOTE, folder / "app" / "settings.yml", cwd=folder)
    audit = folder / "audit.jsonl"
    run(own, "-c", AUDIT, audit, cwd=folder)
    assert "1 review" in run(command, "audit", "summary", audit)


def main(versions: list[str]) -> None:
    """Try each version."""
    with tempfile.TemporaryDirectory() as folder:
        built = None
        for version in versions:
            python = interpreter(version)
            if python is None:
                print(f"note: there is no Python {version} here, so it was not tried")
                continue
            built = built or wheel(Path(folder))
            started = time.monotonic()
            smoke(python, built, Path(folder) / version)
            print(f"Python {version}: works ({time.monotonic() - started:.0f} s)")


if __name__ == "__main__":
    main(sys.argv[1:] or ["3.10", "3.13"])
