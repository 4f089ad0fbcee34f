"""The names under which the host's configurations know our parts."""

KEY = "ttsa_guard"
"""Of our settings in ``custom_data``, and of the guard among the app's registered parameters."""
ENGINE = "ttsa_guard"
"""Of our model class, under ``models``."""
FLOW = "ttsa steer output"
"""Of the output rail."""
