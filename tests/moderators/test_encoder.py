"""The encoder as a gate; what needs its package is marked real."""

import asyncio

import numpy as np
import pytest

from ttsa_guard.config import GuardConfig, Use
from ttsa_guard.errors import ModelError
from ttsa_guard.moderators import encoder, minilm
from ttsa_guard.plugins import Plugins
from ttsa_guard.testing import check_moderator

KIND = "Warm water and a soft cloth are enough. Dry it well afterwards."
RUDE = "Shut up, you stupid ugly idiot. Nobody likes you."
REFUSAL = "I'm sorry, but I can't help with that."


def moderated(texts, prompt="How do I clean a kettle?"):
    moderator = Plugins().make("moderators", Use(use="encoder"))
    return asyncio.run(moderator.moderate(texts, prompts=[prompt] * len(texts)))


def test_a_long_answer_is_cut_into_few_windows_that_miss_nothing():
    head, ids = [1, 2, 3], list(range(1000, 1400))
    windows = encoder.cut(head, ids)
    assert [i for _, part in windows for i in part[:-1]] == ids
    assert [len(head) + len(part) for _, part in windows] == [104] * 4
    assert 3 * (encoder.LENGTH - len(head) - 1) < len(ids)
    assert encoder.cut(head, [7]) == [(head, [7, encoder._SEP])]


def test_a_broken_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(minilm, "load", lambda: (None, None))
    path = tmp_path / "encoder.npz"
    path.write_bytes(b"nothing")
    with pytest.raises(ModelError, match="cannot read the encoder's weights"):
        encoder.read(path)


def test_calibration_weighs_the_network_and_lite():
    logits, lite = np.array([[1.0, 2.0, 0.0, -1.0]], np.float32), np.array([[3.0, 0.0, 0.0]])
    calibration = np.array([[1, 0.5, 1, 1], [2, 0, 0, 0], [-7, -1, 0, 1]], np.float32)
    np.testing.assert_allclose(encoder.calibrated(logits, lite, calibration), 0.5)


@pytest.mark.parametrize(
    ("installed", "backend", "expected"),
    [
        (True, {"use": "transformers", "options": {"model": "smollm2"}}, "encoder"),
        (True, "vllm", "encoder"),
        (False, {"use": "transformers", "options": {"model": "smollm2"}}, "lite"),
        (True, "transformers", "lite"),
        (True, {"use": "transformers", "options": {"model": "embedded"}}, "lite"),
    ],
)
def test_auto_is_the_encoder_where_it_is_installed_and_lite_for_the_embedded_model(
    monkeypatch, installed, backend, expected
):
    monkeypatch.setattr("ttsa_guard.config.find_spec", lambda _: object() if installed else None)
    found = GuardConfig.parse({"backend": backend}).resolved()
    assert [m.use for m in (*found.gate, *found.guide)] == [expected] * 2


def test_auto_keeps_its_place_among_others():
    found = GuardConfig.parse({"gate": ["auto", "patterns"], "guide": "second_opinion"}).resolved()
    assert [m.use for m in found.gate] == ["lite", "patterns"]
    assert [m.use for m in found.guide] == ["second_opinion"]


@pytest.mark.real
def test_kind_answers_pass_and_abuse_does_not():
    kind, rude, refusal = moderated([KIND, RUDE, REFUSAL])
    assert not kind.flagged
    assert rude.flagged
    assert not refusal.flagged
    assert refusal.categories["refusal"] > 0.5 > kind.categories["refusal"]


@pytest.mark.real
def test_abuse_at_the_end_of_a_long_answer_is_found():
    long = " ".join([KIND] * 30)
    clean, late = moderated([long, f"{long} {RUDE}"])
    assert not clean.flagged
    assert late.flagged


@pytest.mark.real
def test_texts_in_a_batch_do_not_change_each_other():
    alone, together = moderated([RUDE])[0], moderated([RUDE, KIND, " ".join([KIND] * 20)])[0]
    assert alone.score == pytest.approx(together.score, abs=0.02)


@pytest.mark.real
def test_the_contract():
    check_moderator(Plugins().make("moderators", Use(use="encoder")))
