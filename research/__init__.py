"""The makers of what ships, and the studies behind what is claimed.

They are run from a checkout and are not in the wheel.
"""

from pathlib import Path

import ttsa_guard

SHIPPED = Path(ttsa_guard.__file__).parent / "embedded"
"""The folder where the makers write what ships."""
