"""Classes that adapt to images: TDA's caches, the blend at zero, and the twin that bounds both."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.vision.features import World
from ttsa_guard.vision.adapter import (
    AdapterOptions,
    Cache,
    CacheOptions,
    DynamicAdapter,
    Entry,
    NegativeCacheOptions,
)
from ttsa_guard.vision.base import Floats, entropy, softmax, unit
from ttsa_guard.vision.blend import ClassBlend

SCALE = 100.0
ON = {
    "positive": CacheOptions(alpha=2.0),
    "negative": NegativeCacheOptions(alpha=1.0),
    "max_drift": 1.0,
}


def made(seed: int = 0, n: int = 40, classes: int = 6) -> tuple[Floats, Floats]:
    """Features of classes, and of images of all of them."""
    world = World.made(seed, classes)
    contents = world.draw.uniform(0, 0.5, size=(n, classes))
    return unit(world.texts(4).mean(1)), world.images(contents)


def entry(value: float, spread: float) -> Entry:
    return Entry(np.array([value]), spread, np.ones(2))


def test_a_cache_keeps_the_lowest_entropies_of_each_class() -> None:
    cache = Cache(CacheOptions(size=2))
    for value, spread in enumerate([0.5, 0.3, 0.6, 0.1, 0.3, 0.3]):
        cache.admit(1, entry(value, spread))
    cache.admit(0, entry(9, 5.0))
    kept = {
        name: [(e.feature[0], e.entropy) for e in found] for name, found in cache.entries.items()
    }
    # of two that are as sure, the first stays
    assert kept == {1: [(3, 0.1), (1, 0.3)], 0: [(9, 5.0)]}


def test_what_a_cache_says_is_that_of_its_images_by_their_nearness() -> None:
    cache = Cache(CacheOptions(alpha=2.0, beta=5.0))
    assert cache.logits(np.array([1.0, 0.0])) == 0.0
    cache.admit(2, Entry(np.array([1.0, 0.0]), 0.1, np.array([0.0, 0, 1])))
    cache.admit(0, Entry(np.array([0.6, 0.8]), 0.1, np.array([1.0, 0, 0])))
    said = cache.logits(np.array([1.0, 0.0]))
    np.testing.assert_allclose(said, [2 * np.exp(-5 * 0.4), 0, 2])


def by_hand(classes: Floats, images: Floats, positive: tuple, negative: tuple) -> list[Floats]:  # type: ignore[type-arg]
    """TDA as its repository has it, with plain lists: the logits of each image of a stream."""
    kept: dict[str, dict[int, list[list[object]]]] = {"+": {}, "-": {}}

    def update(which: str, item: list[object], predicted: int, capacity: int) -> None:
        found = kept[which].setdefault(predicted, [])
        if len(found) < capacity:
            found.append(item)
        elif item[0] < found[-1][0]:  # type: ignore[operator]
            found[-1] = item
        found.sort(key=lambda one: one[0])  # type: ignore[arg-type, return-value]

    found = []
    for image in images:
        logits = SCALE * classes @ image
        shares = softmax(logits)
        spread, predicted = float(entropy(shares)), int(logits.argmax())
        update("+", [spread, image, np.eye(len(logits))[predicted]], predicted, positive[0])
        if 0.2 < spread / np.log2(len(logits)) < 0.5:
            likely = ((shares > 0.03) & (shares < 1)).astype(float)
            update("-", [spread, image, likely], predicted, negative[0])
        for which, sign, (_, alpha, beta) in (("+", 1, positive), ("-", -1, negative)):
            for items in kept[which].values():
                for _, key, value in items:
                    logits = logits + sign * alpha * np.exp(-beta * (1 - image @ key)) * value  # type: ignore[operator]
        found.append(logits)
    assert sum(map(len, kept["-"].values())) > 3
    return found


def test_a_stream_has_the_logits_of_tda() -> None:
    classes, images = made()
    adapter = DynamicAdapter(classes, scale=SCALE, options=AdapterOptions(**ON))
    for image, logits in zip(images, by_hand(classes, images, (3, 2, 5), (2, 1, 1)), strict=True):
        np.testing.assert_allclose(adapter.predict(image).probabilities, softmax(logits))


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.1), (0.2, 0.5), (0.5, 0.7)])
def test_only_unsure_images_come_into_the_negative_cache(low: float, high: float) -> None:
    classes, images = made(n=80)
    negative = NegativeCacheOptions(size=99, entropy=(low, high))
    options = AdapterOptions(negative=negative, max_drift=1.0)
    adapter = DynamicAdapter(classes, scale=SCALE, options=options)
    spreads = [float(entropy(adapter.plain(image))) / np.log2(6) for image in images]
    for image in images:
        adapter.predict(image)
    kept = [e.entropy / np.log2(6) for of in adapter.negative.entries.values() for e in of]
    assert sorted(kept) == pytest.approx(sorted(s for s in spreads if low < s < high))
    assert 0 < len(kept) < 80
    assert adapter.positive.entries == {}, "it is off"


def test_with_nothing_on_the_probabilities_are_the_plain_ones_bit_for_bit() -> None:
    classes, images = made()
    off = AdapterOptions(negative=NegativeCacheOptions(alpha=0), max_drift=0.0)
    adapter = DynamicAdapter(classes, scale=SCALE, options=off)
    for image in images:
        found = adapter.predict(image)
        assert (found.drift, found.reset) == (0.0, False)
        assert found.probabilities.tobytes() == adapter.plain(image).tobytes()


def test_a_blend_at_zero_gives_the_classes_bit_for_bit() -> None:
    classes, images = made()
    blend = ClassBlend(classes, scale=SCALE, rate=0.01)
    assert blend.classes(images[:12]).tobytes() == classes.tobytes()
    blend.step(images[:12])
    assert np.abs(blend.classes(images[:12]) - classes).max() > 1e-4


def test_steps_of_the_blend_make_predictions_surer() -> None:
    classes, images = made()
    options = AdapterOptions(
        learning_rate=1e-3, negative=NegativeCacheOptions(alpha=0), max_drift=1.0
    )
    adapter = DynamicAdapter(classes, scale=SCALE, options=options)
    before = entropy(adapter.plain(images[0]))
    spreads = [float(entropy(adapter.predict(images[0]).probabilities)) for _ in range(20)]
    assert before > spreads[0] > spreads[10] > spreads[19]
    assert spreads[19] < 0.9 * before


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 999),
    bound=st.sampled_from([0.0, 0.01, 0.1, 0.5]),
    alphas=st.tuples(st.sampled_from([0.0, 2.0, 20.0]), st.sampled_from([0.1, 5.0])),
    rate=st.sampled_from([0.0, 1e-3]),
)
def test_no_stream_drifts_further_than_the_bound(
    seed: int, bound: float, alphas: tuple[float, float], rate: float
) -> None:
    classes, images = made(seed, n=15)
    options = AdapterOptions(
        positive=CacheOptions(alpha=alphas[0]),
        negative=NegativeCacheOptions(alpha=alphas[1]),
        learning_rate=rate,
        max_drift=bound,
    )
    adapter = DynamicAdapter(classes, scale=SCALE, options=options)
    for image in images:
        found = adapter.predict(image)
        changes = found.probabilities - adapter.plain(image)
        # of the classes that gained, together: no set of classes differs by more
        assert changes[changes > 0].sum() <= bound + 1e-9
        assert found.reset == (found.drift > bound)
        assert not found.reset or not changes.any()


def test_a_drift_that_is_too_large_forgets_everything() -> None:
    classes, images = made()
    adapter = DynamicAdapter(classes, scale=SCALE, options=AdapterOptions(**ON))
    for image in images:
        adapter.predict(image)
    assert adapter.positive.entries
    fresh = DynamicAdapter(classes, scale=SCALE, options=AdapterOptions(**ON))
    strict = DynamicAdapter(
        classes, scale=SCALE, options=AdapterOptions(**{**ON, "max_drift": 0.0})
    )
    assert strict.predict(images[0]).reset
    assert strict.positive.entries == strict.negative.entries == {}
    adapter.reset()
    assert (
        adapter.predict(images[3]).probabilities.tolist()
        == fresh.predict(images[3]).probabilities.tolist()
    )


def test_what_is_not_to_be_learned_changes_nothing() -> None:
    classes, images = made()
    adapter = DynamicAdapter(classes, scale=SCALE, options=AdapterOptions(**ON, learning_rate=1e-3))
    for image in images[:20]:
        adapter.predict(image)
    first = adapter.predict(images[30], learn=False)
    for image in images[20:]:
        adapter.predict(image, learn=False)
    again = adapter.predict(images[30], learn=False)
    assert first.probabilities.tolist() == again.probabilities.tolist()
    assert first.drift > 0
