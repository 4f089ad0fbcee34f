"""A moderator whose flags have a category."""

from dataclasses import replace

from ttsa_guard.testing import ScriptedModerator


class FlagsFor(ScriptedModerator):
    """Scores texts as `ScriptedModerator` does, and gives the score to a category, too."""

    def __init__(self, category):
        super().__init__()
        self._category = category

    def _verdict(self, text):
        found = super()._verdict(text)
        return replace(found, categories={**found.categories, self._category: found.score})
