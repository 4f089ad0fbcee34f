"""How what ships was made, and the studies behind what is claimed. Run from a checkout; not in the wheel."""

from pathlib import Path

import ttsa_guard

SHIPPED = Path(ttsa_guard.__file__).parent / "embedded"
"""Where the makers write what ships."""
