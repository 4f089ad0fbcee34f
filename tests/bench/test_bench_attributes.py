"""The attribute meters."""

import numpy as np
import pytest

from ttsa_guard.errors import ConfigError
from ttsa_guard.steerers.prosocial.preferences import ATTRIBUTES

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def meters():
    from research.prosocial.attributes import Meters

    return Meters.fitted()


def test_they_know_sentences_that_they_have_not_seen(meters):
    assert min(meters.separation().values()) > 0.8


def test_a_sentence_raises_its_own_meter_most(meters):
    answer = "Here is a simple way to clean the kettle. Wipe the kettle with a soft cloth."
    added = {
        "empathy": "I understand how hard this is for you.",
        "truthfulness": "I am not sure about this, so please check it.",
        "helpfulness": "Begin with one small step tomorrow.",
    }
    [plain] = meters.measure([answer])
    for name, sentence in added.items():
        [found] = meters.measure([f"{answer} {sentence}"])
        assert ATTRIBUTES[int(np.argmax(found - plain))] == name


def test_values_are_shares_and_nothing_has_nothing(meters):
    found = meters.measure(["", "What?", "Every question is welcome."])
    assert found.shape == (3, 5)
    assert found.min() >= 0
    assert found.max() <= 1
    assert not found[0].any()
    assert meters.measure([]).shape == (0, 5)


def test_missing_data_are_named(tmp_path):
    from research.prosocial.attributes import Meters

    with pytest.raises(ConfigError, match="goemotions"):
        Meters.fitted(tmp_path)
