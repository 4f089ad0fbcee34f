"""GuardAlign's masking half on made features: what holds, and what its printed form gets wrong."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from scipy.optimize import linprog

from research.vision.features import World
from ttsa_guard.errors import ConfigError, ModelError
from ttsa_guard.vision.base import Floats, unit
from ttsa_guard.vision.transport import TransportOptions, patch_scores, threshold, transport

WEIGHTS = ["even", "text", "printed"]
AGGREGATES = ["nearest", "paper", "cosine"]


def made(
    seed: int = 0, m: int = 16, categories: int = 5, n: int = 4, planted: float = 0.0
) -> tuple[Floats, Floats, np.random.Generator]:
    """Patches and texts whose cosines lie around 0.2; the fourth patch may have a content."""
    world = World.made(seed, categories)
    contents = np.zeros((m, categories))
    contents[3, -1] = planted
    return world.images(contents), world.texts(n), world.draw


def options(**chosen: Any) -> TransportOptions:
    return TransportOptions(**chosen)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("epsilon", [0.1, 0.01])
def test_a_plan_has_its_weights_as_sums(weights: str, epsilon: float) -> None:
    patches, texts, _ = made()
    found = transport(patches, texts, options(weights=weights, epsilon=epsilon))
    assert found.plans.min() >= 0
    assert np.ptp(found.patch_weights) > 1e-4 or weights == "even"
    assert np.ptp(found.text_weights) > 1e-4 or weights == "even"
    for plan, texts_of_one in zip(found.plans, found.text_weights, strict=True):
        np.testing.assert_allclose(plan.sum(1), found.patch_weights, atol=1e-8)
        np.testing.assert_allclose(plan.sum(0), texts_of_one, atol=1e-8)
    np.testing.assert_allclose(found.text_weights.sum(1), 1)


def exact(a: Floats, b: Floats, cost: Floats) -> Floats:
    """The cheapest plan, as a linear programme."""
    m, n = cost.shape
    rows = np.kron(np.eye(m), np.ones((1, n)))
    columns = np.kron(np.ones((1, m)), np.eye(n))
    solved = linprog(cost.ravel(), A_eq=np.vstack([rows, columns]), b_eq=np.concatenate([a, b]))
    plan: Floats = solved.x.reshape(m, n)
    return plan


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("epsilon", [0.1, 0.01, 0.001])
def test_it_costs_as_much_as_the_cheapest_plan_but_for_the_entropy(
    seed: int, epsilon: float
) -> None:
    patches, texts, _ = made(seed, m=4, categories=2)
    found = transport(patches, texts, options(weights="text", epsilon=epsilon))
    for plan, b, cost in zip(found.plans, found.text_weights, found.costs, strict=True):
        best = (exact(found.patch_weights, b, cost) * cost).sum()
        assert best - 1e-9 <= (plan * cost).sum() <= best + epsilon * np.log(plan.size)


def test_with_a_small_entropy_term_it_is_the_cheapest_plan() -> None:
    _, texts, draw = made(categories=1)
    patches = unit(texts[0] + 0.3 * unit(draw.normal(size=texts[0].shape)))[[2, 0, 3, 1]]
    found = transport(patches, texts, options(epsilon=0.001))
    even = np.full(4, 0.25)
    np.testing.assert_allclose(found.plans[0], exact(even, even, found.costs[0]), atol=1e-6)
    np.testing.assert_allclose(found.plans[0] > 0.2, np.eye(4)[[2, 0, 3, 1]])


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_orders_do_not_matter(aggregate: str, weights: str) -> None:
    patches, texts, draw = made()
    chosen = options(aggregate=aggregate, weights=weights)
    scores = patch_scores(patches, texts, chosen)
    order = draw.permutation(len(patches))
    np.testing.assert_allclose(patch_scores(patches[order], texts, chosen), scores[order])
    shuffled = texts[draw.permutation(len(texts))][:, draw.permutation(texts.shape[1])]
    np.testing.assert_allclose(patch_scores(patches, shuffled, chosen), scores)
    np.testing.assert_allclose(patch_scores(3 * patches, 7 * texts, chosen), scores)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_with_one_text_a_category_the_nearest_is_the_plain_cosine(weights: str) -> None:
    patches, texts, _ = made(n=1)
    np.testing.assert_allclose(
        patch_scores(patches, texts, options(weights=weights)),
        patch_scores(patches, texts, options(aggregate="cosine")),
    )


@pytest.mark.parametrize("aggregate", ["nearest", "cosine"])
@pytest.mark.parametrize("m", [9, 16, 36, 196])
def test_a_planted_patch_is_found(aggregate: str, m: int) -> None:
    for seed in range(5):
        patches, texts, _ = made(seed, m=m, planted=0.8)
        assert patch_scores(patches, texts, options(aggregate=aggregate)).argmin() == 3


def two_patches() -> tuple[Floats, Floats]:
    """Two categories, and two patches as close to both together.

    The first patch lies between them, and the second is closer to one of them.
    """
    texts = np.eye(3)[:2, None]
    cosines = np.array([[0.3, 0.3], [0.36, 0.24]])
    third = np.sqrt(1 - (cosines**2).sum(1, keepdims=True))
    return np.hstack([cosines, third]), texts


@pytest.mark.parametrize(("weights", "lower"), [("printed", 1), ("text", 0)])
def test_the_sign_of_the_weights_alone_decides_which_patch_is_unsafe(
    weights: str, lower: int
) -> None:
    """Equation 7 and the sentence after it flag opposite patches."""
    scores = patch_scores(*two_patches(), options(aggregate="paper", weights=weights))
    assert scores.argmin() == lower
    assert np.ptp(scores) > 0.3
    even = patch_scores(*two_patches(), options(aggregate="paper"))
    assert np.ptp(even) < 1e-12


@pytest.mark.parametrize(("m", "masked"), [(9, 0), (16, 16), (36, 36)])
def test_a_constant_threshold_says_how_many_patches_there_are(m: int, masked: int) -> None:
    """The printed score is the mean cost, times categories by patches: 0.42 masks none or all."""
    patches, texts, _ = made(m=m, categories=7, planted=0.6)
    scores = patch_scores(patches, texts, options(aggregate="paper"))
    assert (scores <= 0.42).sum() == masked


def test_the_scale_of_the_nearest_depends_on_no_number_of_patches() -> None:
    lowest = [patch_scores(*made(m=m, categories=7)[:2]).mean() for m in (9, 36, 196)]
    assert np.ptp(lowest) < 0.03


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5])
@pytest.mark.parametrize("n", [1, 9, 10, 250])
def test_a_threshold_masks_in_at_most_that_share_of_safe_images(share: float, n: int) -> None:
    safe = list(np.random.default_rng(0).normal(size=(n, 12)))
    found = threshold(safe, share)
    masked = sum((scores <= found).any() for scores in safe)
    assert masked <= share * n
    assert masked + 1 > share * n, "a higher one would do"


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_threshold_needs_images_and_a_share(share: float) -> None:
    with pytest.raises(ConfigError, match="share"):
        threshold([np.ones(3)], share)
    with pytest.raises(ConfigError, match="needs safe images"):
        threshold([])


def test_features_that_are_no_numbers_do_not_pass_as_safe_patches() -> None:
    patches, texts, _ = made()
    patches[0, 0] = np.nan
    with pytest.raises(ModelError, match="no numbers"):
        patch_scores(patches, texts)


def test_shapes_that_do_not_fit_are_told() -> None:
    patches, texts, _ = made()
    with pytest.raises(ConfigError, match="do not fit"):
        patch_scores(patches, texts[0])


def test_without_its_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ot", None)
    patches, texts, _ = made()
    with pytest.raises(ModelError) as caught:
        patch_scores(patches, texts)
    assert caught.value.hint == "pip install 'ttsa-guard[masking]'"
    assert len(patch_scores(patches, texts, options(aggregate="cosine"))) == len(patches)
