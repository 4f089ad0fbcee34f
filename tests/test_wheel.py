"""What is in the wheel that users get: built through the sdist, as on a release."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from zipfile import ZipFile

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "ttsa_guard", "research")


def build(kind, folder, out):
    pytest.importorskip("setuptools", minversion="77")
    code = f"from setuptools import build_meta as b; b.build_{kind}({str(out)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True)
    [built] = out.iterdir()
    return built


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("wheel")
    for folder in ("source", "sdist", "unpacked", "wheel"):
        (tmp / folder).mkdir()
    for name in SOURCES:  # a copy: building writes next to the sources
        skip = shutil.ignore_patterns("__pycache__")
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp / "source" / name, symlinks=True, ignore=skip)
        else:
            shutil.copy(ROOT / name, tmp / "source" / name)
    # as git writes a link on Windows
    (tmp / "source" / "rails").write_text("ttsa_guard/rails", encoding="utf-8")
    with tarfile.open(build("sdist", tmp / "source", tmp / "sdist")) as archive:
        # not in every 3.10 and 3.11
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(tmp / "unpacked", **safely)
    [unpacked] = (tmp / "unpacked").iterdir()
    with ZipFile(build("wheel", unpacked, tmp / "wheel")) as wheel:
        return set(wheel.namelist())


@pytest.mark.parametrize(
    "name",
    [
        "py.typed",
        "rails/config.py",
        "rails/flows.co",
        "rails/flows.v1.co",
        "moderators/lite.py",
        "cli/__init__.py",
        "bench/embedded.yaml",
        "steerers/probes.yaml",
        "pages/templates/benchmark.html",
        "pages/templates/reviews.html",
        "pages/templates/reviews.css",
        "pages/templates/reviews.js",
        "pages/templates/style.css",
        "settings.schema.json",
    ],
)
def test_the_wheel_has(names, name):
    assert f"ttsa_guard/{name}" in names


def test_the_wheel_has_everything_embedded(names):
    folder = ROOT / "ttsa_guard" / "embedded"
    files = [f for f in folder.rglob("*") if f.is_file() and "__pycache__" not in f.parts]
    assert {f.relative_to(ROOT).as_posix() for f in files} <= names


def test_only_our_package_is_installed(names):
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"ttsa_guard"}
    assert not [
        name
        for name in names
        if "/tests/" in name or (name.endswith((".yaml", ".yml")) and "/rails/" in name)
    ]
