"""What several tests of moderators use."""

import pytest

from ttsa_guard.moderators import minilm


@pytest.fixture
def break_encoder(monkeypatch):
    """Let a part of what reads texts with the sentence encoder fail, with a text in its error."""

    def broken(part, text):
        def fail(*_):
            raise ImportError(text)

        monkeypatch.setattr(minilm, "installed", lambda: True)
        monkeypatch.setattr(f"ttsa_guard.moderators.{part}", fail)

    return broken
