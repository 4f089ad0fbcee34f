"""A checkout works where git cannot make links, as on many Windows machines."""

from pathlib import Path

import ttsa_guard
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
