"""A checkout works where git cannot make links, as on many Windows machines."""

from pathlib import Path

from typer.testing import CliRunner

import ttsa_guard
from ttsa_guard.cli import app
from ttsa_guard.nemo import rails_path

PACKAGE = Path(ttsa_guard.__file__).parent
LINK = PACKAGE.parent / "rails"


def test_nothing_in_the_package_is_a_link():
    assert [path for path in PACKAGE.rglob("*") if path.is_symlink()] == []
    assert (Path(rails_path()) / "flows.v1.co").is_file()


def test_the_folder_beside_the_package_is_the_packages_own():
    if LINK.is_file():  # git wrote where the link would lead
        assert LINK.read_text(encoding="utf-8") == "ttsa_guard/rails"
    else:
        assert LINK.resolve() == Path(rails_path()).resolve()


def test_what_git_writes_in_place_of_the_link_is_named_with_a_way_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    (tmp_path / "rails").write_text("ttsa_guard/rails")
    app_folder = tmp_path / "app"
    app_folder.mkdir()
    config = app_folder / "config.yml"
    text = "models: []\nrails: {output: {flows: [ttsa steer output]}}\nimport_paths: [rails]\n"
    config.write_text(text)
    done = CliRunner().invoke(app, ["config", "check", "app"])
    assert done.exit_code == 1
    assert "import_paths: 'rails' is a file, and no folder" in done.stdout
    assert "give 'ttsa_guard/rails' itself, or a config.py" in done.stdout
    config.write_text(text.replace("import_paths: [rails]\n", ""))
    (app_folder / "config.py").write_text("from ttsa_guard.nemo import init\n")
    assert CliRunner().invoke(app, ["config", "check", "app"]).exit_code == 0
