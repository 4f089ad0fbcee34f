"""Where the flows are that a configuration imports."""

from pathlib import Path


def rails_path() -> str:
    """Return the folder with our flows, for ``import_paths``, in every kind of installation."""
    return str(Path(__file__).parent.parent / "rails")
