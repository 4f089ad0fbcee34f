"""Make a part of the guard from what the configuration says about it."""

from __future__ import annotations

from typing import Any

from ttsa_guard.config import Use, validated
from ttsa_guard.errors import ConfigError, TTSAError
from ttsa_guard.plugins import Kind, Plugins


def make(plugins: Plugins, kind: Kind, use: Use) -> Any:
    """The moderator, backend or steerer that `use` names, with its options validated.

    Raises:
        PluginError: nothing of that name is installed, or it cannot be imported.
        ConfigError: an option is wrong, or the plugin cannot be built with it.
    """
    registered = plugins.load(kind, use.use)
    options = validated(registered.options, use.options, where=f"{kind}.{use.use}")
    try:
        return registered.factory(options)
    except TTSAError:
        raise
    except Exception as error:
        raise ConfigError(f"plugin {use.use!r} cannot be built: {error}", hint=f"check its options in {kind}") from error
