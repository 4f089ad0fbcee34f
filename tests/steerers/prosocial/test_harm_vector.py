import pytest
import torch
from transformers import AutoModelForCausalLM

from ttsa_guard.backends.local.controlled import fingerprint
from ttsa_guard.errors import ConfigError
from ttsa_guard.steerers.prosocial.harm_vector import HarmVector


@pytest.fixture
def model(tiny_model):
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)


def tuned(tiny_model, seed=0):
    found = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in found.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return found


@pytest.fixture
def vector(model, tiny_model):
    return HarmVector.difference(model, tuned(tiny_model), keep=1.0)


def weights(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def test_all_of_the_difference_leads_to_the_tuned_model(model, tiny_model, vector):
    vector.subtract(model, -1.0)
    expected = weights(tuned(tiny_model))
    assert all(torch.allclose(w, expected[n], atol=1e-6) for n, w in weights(model).items())


@pytest.mark.parametrize("strength", [1.0, 3.7, -0.1])
def test_weights_are_bit_equal_after_a_subtraction(model, vector, strength):
    before = weights(model)
    with vector.top(0.3).subtracted(model, strength):
        assert not same(before, weights(model))
    assert same(before, weights(model))


def test_weights_are_bit_equal_after_a_failure_within(model, vector):
    before = weights(model)
    with pytest.raises(RuntimeError), vector.subtracted(model):
        raise RuntimeError
    assert same(before, weights(model))


def test_the_largest_entries_are_kept(vector):
    kept = vector.top(0.1)
    size = sum(e.shape[0] for e in vector.entries.values())
    smallest = min(
        float(e.values().abs().min()) for e in kept.entries.values() if e.values().numel()
    )
    left = vector - kept
    assert len(kept) == pytest.approx(0.1 * size, abs=2)
    assert max(float(e.values().abs().max()) for e in left.entries.values()) <= smallest


def test_within_a_layer_every_layer_keeps_its_share(vector):
    kept = vector.top(0.1, within="layer")
    for layer in ("model.layers.0.", "model.layers.1."):
        names = [n for n in vector.entries if n.startswith(layer)]
        size = sum(vector.entries[n].shape[0] for n in names)
        assert sum(kept.entries[n].values().numel() for n in names) == pytest.approx(
            0.1 * size, abs=1
        )


@pytest.mark.parametrize("keep", [0.0, 1.1, -1.0, float("nan")])
def test_a_share_is_between_nothing_and_all(vector, keep):
    with pytest.raises(ConfigError, match="cannot be kept"):
        vector.top(keep)


def test_arithmetic(model, tiny_model, vector):
    other = HarmVector.difference(model, tuned(tiny_model, seed=1), keep=1.0)
    assert (vector + other - other).cosine(vector) == pytest.approx(1.0, abs=1e-5)
    assert (2 * vector).norm() == pytest.approx(2 * vector.norm())
    assert (vector * -1.0).cosine(vector) == pytest.approx(-1.0)
    assert abs(vector.cosine(other)) < 0.1
    assert (vector * 0.0).norm() == (vector * 0.0).cosine(vector) == 0.0


def test_a_file_gives_back_what_was_saved(vector, tmp_path):
    kept = vector.top(0.2)
    kept.save(tmp_path / "h.safetensors")
    found = HarmVector.load(tmp_path / "h.safetensors")
    assert (found.base, found.made, len(found)) == (kept.base, kept.made, len(kept))
    assert found.cosine(kept) == pytest.approx(1.0, abs=1e-4)


def test_a_difference_needs_one_architecture(model):
    with pytest.raises(ConfigError, match="other parameters"):
        HarmVector.difference(model, torch.nn.Linear(2, 2))


def test_other_weights_are_refused(model, vector, tiny_model):
    other = tuned(tiny_model)
    with pytest.raises(ConfigError, match="another model"):
        vector.subtract(other)
    with pytest.raises(ConfigError, match="different models"):
        vector + HarmVector.difference(other, model)


def test_the_fingerprint_is_that_of_the_checkpoint(model, tiny_model):
    half = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16)
    assert fingerprint(half) == fingerprint(model) != fingerprint(tuned(tiny_model))


@pytest.mark.parametrize(
    "content", [None, b"", b"no tensors at all"], ids=["missing", "empty", "text"]
)
def test_an_unreadable_file_is_refused(tmp_path, content):
    path = tmp_path / "h.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="cannot read"):
        HarmVector.load(path)


def test_a_file_of_something_else_is_refused(tiny_model):
    with pytest.raises(ConfigError, match="no harm vector"):
        HarmVector.load(tiny_model / "model.safetensors")
