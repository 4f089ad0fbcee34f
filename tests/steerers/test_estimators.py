"""The mathematics of moving soft rows, against small examples worked out by hand."""

import math

import pytest
import torch

from ttsa_guard.steerers.estimators import (
    Antithetic,
    Climb,
    Forward,
    OneSided,
    RandomDirection,
    clip_tokens,
    floor_cosine,
    signal_to_noise,
    unit,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def cosine(a, b):
    return torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


ORIGIN = torch.randn(3, 4, generator=seeded(1))


def search(kind=OneSided, origin=ORIGIN, *, seed=0, **settings):
    settings = {
        "probes": 8,
        "probe": 0.1,
        "step": 0.5,
        "cosine": 0.2,
        "normalise": "per_token",
        **settings,
    }
    return kind(origin, generator=seeded(seed), **settings)


# ---------------------------------------------------------------------- unit


def test_unit_per_token_gives_every_row_norm_one():
    direction = torch.tensor([[3.0, 4.0], [0.0, -2.0]])
    assert torch.allclose(unit(direction, "per_token"), torch.tensor([[0.6, 0.8], [0.0, -1.0]]))


def test_unit_of_a_matrix_keeps_the_proportions_of_its_rows():
    direction = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    assert torch.allclose(unit(direction, "matrix"), torch.tensor([[0.6, 0.0], [0.0, 0.8]]))


@pytest.mark.parametrize("normalise", ["per_token", "matrix"])
def test_unit_works_on_batches_one_by_one(normalise):
    batch = torch.randn(2, 3, 4, generator=seeded())
    alone = torch.stack([unit(direction, normalise) for direction in batch])
    assert torch.allclose(unit(batch, normalise), alone)


@pytest.mark.parametrize("normalise", ["per_token", "matrix"])
def test_unit_of_zero_is_zero_and_of_tiny_things_one(normalise):
    assert torch.equal(unit(torch.zeros(2, 3), normalise), torch.zeros(2, 3))
    mixed = unit(torch.tensor([[0.0, 0.0], [1e-15, 0.0]]), normalise)
    assert torch.allclose(mixed, torch.tensor([[0.0, 0.0], [1.0, 0.0]]))


# ---------------------------------------------------------------------- floor_cosine


@pytest.mark.parametrize("floor", [0.2, 0.6, 0.95])
@pytest.mark.parametrize("seed", range(4))
def test_a_point_beyond_the_boundary_is_moved_onto_it_at_its_norm(floor, seed):
    origin = torch.randn(5, 8, generator=seeded(seed))
    across = torch.randn(5, 8, generator=seeded(seed + 100))
    across -= (across * origin).sum() / origin.norm() ** 2 * origin
    for along in (0.05, 0.0, -0.5, -3.0):  # a negative cosine has no exception
        point = along * origin + 2.0 * across
        moved = floor_cosine(point, origin, floor)
        assert cosine(moved, origin) == pytest.approx(floor, abs=1e-4)
        assert moved.norm().item() == pytest.approx(point.norm().item(), rel=1e-5)
        rest = moved - (moved * origin).sum() / origin.norm() ** 2 * origin
        # it stays in its plane, on its side
        assert cosine(rest, across) == pytest.approx(1.0, abs=1e-4)


def test_the_boundary_by_hand():
    moved = floor_cosine(torch.tensor([[0.6, 0.8]]), torch.tensor([[1.0, 0.0]]), 0.8)
    assert torch.allclose(moved, torch.tensor([[0.8, 0.6]]))


def test_points_inside_stay_untouched():
    for point in (ORIGIN, 7 * ORIGIN, ORIGIN + 0.1):
        assert floor_cosine(point, ORIGIN, 0.2) is point


@pytest.mark.parametrize("point", [-ORIGIN, torch.zeros_like(ORIGIN)], ids=["opposite", "zero"])
def test_points_without_a_way_back_stay_finite(point):
    moved = floor_cosine(point, ORIGIN, 0.2)
    assert torch.isfinite(moved).all()
    assert moved.norm().item() == pytest.approx(point.norm().item(), rel=1e-5)
    assert torch.isfinite(floor_cosine(point, torch.zeros_like(ORIGIN), 0.2)).all()


# ---------------------------------------------------------------------- one-sided differences


def test_one_iteration_is_algorithm_1():
    probe, step, floor = 0.1, 0.7, 0.9
    mine = search(probes=3, probe=probe, step=step, cosine=floor)
    directions = torch.randn(3, *ORIGIN.shape, generator=seeded())  # step 5
    asked = mine.ask()
    assert torch.allclose(asked, ORIGIN + probe * directions)

    base, scores = 0.8, [0.5, 0.9, 0.6]
    mine.tell(base, torch.tensor(scores))
    # step 6
    gradient = (
        sum((score - base) / probe * u for score, u in zip(scores, directions, strict=True)) / 3
    )
    gradient = torch.stack([row / row.norm() for row in gradient])  # step 7, for each token
    expected = ORIGIN - step * gradient  # step 8
    assert cosine(expected, ORIGIN) < floor  # or step 9 would not be tested
    along = ORIGIN / ORIGIN.norm()
    parallel = (expected * along).sum() * along  # step 9: shorten what is across, keep the norm
    across = expected - parallel
    shortened = parallel + across / across.norm() * parallel.norm() * math.sqrt(1 / floor**2 - 1)
    assert torch.allclose(mine.point, shortened / shortened.norm() * expected.norm(), atol=1e-5)


def test_the_next_probes_are_fresh_and_around_the_new_point():
    generator = seeded()
    mine = search(probes=2)
    first, second = (torch.randn(2, *ORIGIN.shape, generator=generator) for _ in range(2))
    assert torch.allclose(mine.ask(), ORIGIN + mine.probe * first)
    mine.tell(0.5, torch.tensor([0.1, 0.2]))
    assert torch.allclose(mine.ask(), mine.point + mine.probe * second)
    assert not torch.allclose(mine.point, ORIGIN)


@pytest.mark.parametrize(
    ("normalise", "length"), [("per_token", math.sqrt(3) * 0.5), ("matrix", 0.5)]
)
def test_the_length_of_a_step(normalise, length):
    for kind in (OneSided, RandomDirection):
        mine = search(kind, normalise=normalise, cosine=0.01)
        mine.tell(0.5, torch.linspace(0, 1, len(mine.ask())))
        assert (mine.point - ORIGIN).norm().item() == pytest.approx(length, rel=1e-4)


@pytest.mark.parametrize("kind", [OneSided, RandomDirection])
def test_a_step_of_zero_stays(kind):
    mine = search(kind, step=0.0)
    mine.tell(0.5, torch.linspace(0, 1, len(mine.ask())))
    assert torch.equal(mine.point, ORIGIN)


def test_equal_scores_give_no_direction():
    mine = search()
    mine.ask()
    mine.tell(0.7, torch.full((8,), 0.7))
    assert torch.equal(mine.point, ORIGIN)


def test_a_probe_of_zero_is_safe():
    mine = search(probe=0.0)
    assert torch.equal(mine.ask(), ORIGIN.expand(8, -1, -1))
    mine.tell(0.5, torch.full((8,), 0.5))
    assert torch.equal(mine.point, ORIGIN)
    mine.tell(0.5, torch.linspace(0, 1, 8))  # sampled answers may differ all the same
    assert torch.isfinite(mine.point).all()


@pytest.mark.parametrize("kind", [OneSided, RandomDirection])
def test_the_generator_decides(kind):
    def end(seed):
        mine = search(kind, seed=seed)
        for _ in range(3):
            mine.tell(0.5, mine.ask().mean((1, 2)))
        return mine.point

    assert torch.equal(end(0), end(0))
    assert not torch.equal(end(0), end(1))


def distance(points, goal):
    return (points - goal).flatten(-2).norm(dim=-1) ** 2


def test_it_descends_a_quadratic_and_a_random_direction_does_not():
    goal = ORIGIN + 1.0

    def left(kind, seed):
        mine = search(kind, seed=seed, step=0.1, probe=0.01)
        for _ in range(20):
            mine.tell(distance(mine.point, goal).item(), distance(mine.ask(), goal))
        return (distance(mine.point, goal) / distance(ORIGIN, goal)).item()

    for seed in range(3):
        assert left(OneSided, seed) < 0.3
        assert left(RandomDirection, seed) > 0.6


def test_a_random_direction_asks_nothing_and_keeps_the_floor():
    mine = search(RandomDirection, step=50.0)
    assert mine.ask().shape == (0, 3, 4)
    mine.tell(0.5, torch.zeros(0))
    assert cosine(mine.point, ORIGIN) >= 0.2 - 1e-4


# ---------------------------------------------------------------------- symmetric differences


def test_antithetic_asks_in_pairs():
    points = Antithetic(5, 0.3, seeded()).ask(ORIGIN)
    assert points.shape == (10, 3, 4)
    assert torch.allclose((points[:5] + points[5:]) / 2, ORIGIN.expand(5, -1, -1), atol=1e-6)
    assert ((points[:5] - ORIGIN) / 0.3).std().item() == pytest.approx(1.0, abs=0.3)


def test_antithetic_by_hand():
    estimator = Antithetic(2, 0.5, seeded())
    directions = torch.randn(2, 3, 4, generator=seeded())
    estimator.ask(ORIGIN)
    found = estimator.tell(torch.tensor([1.0, 2.0, 0.5, 4.0]))
    assert torch.allclose(found, (0.5 * directions[0] - 2.0 * directions[1]) / 2)


def test_antithetic_estimates_the_gradient_of_a_linear_function():
    slope = torch.randn(3, 4, generator=seeded(5))

    def values(points):
        return (points * slope).sum((1, 2)) + 3.0

    many = Antithetic(20_000, 0.3, seeded())
    found = many.tell(values(many.ask(ORIGIN)))
    assert (found - slope).norm() < 0.05 * slope.norm()
    few = Antithetic(16, 0.3, seeded())
    assert cosine(few.tell(values(few.ask(ORIGIN))), slope) > 0.5


def test_antithetic_ignores_what_is_even():
    estimator = Antithetic(6, 0.3, seeded())
    points = estimator.ask(torch.zeros(3, 4))
    assert estimator.tell((points**2).sum((1, 2))).abs().max() < 1e-5


def test_antithetic_with_a_probe_of_zero_finds_nothing():
    estimator = Antithetic(4, 0.0, seeded())
    points = estimator.ask(ORIGIN)
    assert torch.equal(estimator.tell(points.sum((1, 2))), torch.zeros(3, 4))


# ---------------------------------------------------------------------- rows that stay


FREE = torch.tensor([True, False, True])


@pytest.mark.parametrize("kind", [Forward, Antithetic])
def test_frozen_rows_get_no_noise_and_no_gradient(kind):
    estimator = kind(6, 0.3, seeded(), FREE)
    points = estimator.ask(ORIGIN)
    assert torch.equal(points[:, 1], ORIGIN[1].expand(len(points), -1))
    assert not torch.isclose(points[1:, FREE], ORIGIN[FREE]).any()
    gradient = estimator.tell(points.sum((1, 2)))
    assert torch.equal(gradient[1], torch.zeros(4))
    assert gradient[FREE].abs().min() > 0


@pytest.mark.parametrize("kind", [Forward, Antithetic])
def test_what_is_free_is_probed_as_if_all_were(kind):
    masked, plain = kind(6, 0.3, seeded(), FREE).ask(ORIGIN), kind(6, 0.3, seeded()).ask(ORIGIN)
    assert torch.equal(masked[:, FREE], plain[:, FREE])


# ---------------------------------------------------------------------- forward differences


def test_forward_by_hand():
    estimator = Forward(2, 0.5, seeded())
    directions = torch.randn(2, 3, 4, generator=seeded())
    asked = estimator.ask(ORIGIN)
    assert torch.equal(asked[0], ORIGIN)
    assert torch.allclose(asked[1:], ORIGIN + 0.5 * directions)
    values = torch.tensor([1.0, 2.0, 0.5])
    assert estimator.value(values) == 1.0
    assert torch.equal(estimator.changes(values), torch.tensor([1.0, -0.5]))
    assert torch.allclose(estimator.tell(values), (2.0 * directions[0] - 1.0 * directions[1]) / 2)


def test_antithetic_knows_the_value_between_its_pairs():
    estimator = Antithetic(6, 0.3, seeded())
    values = estimator.ask(ORIGIN).sum((1, 2))
    assert estimator.value(values) == pytest.approx(ORIGIN.sum().item(), abs=1e-4)


# ---------------------------------------------------------------------- the size of a direction


def test_clipping_shortens_long_rows_only():
    direction = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    assert torch.allclose(
        clip_tokens(direction, 1.0), torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]])
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([1.0, 2.0, 3.0], 2.0),
        ([-1.0, -2.0, -3.0], 2.0),
        ([1.0, -1.0], 0.0),
        ([5.0], 0.0),
        ([0.0, 0.0], 0.0),
    ],
)
def test_signal_to_noise(changes, expected):
    assert signal_to_noise(torch.tensor(changes)) == pytest.approx(expected)


# ---------------------------------------------------------------------- the ascent


def climb(kind=Forward, *, free=None, probe=0.01, **settings):
    settings = {
        "step": 0.1,
        "clip": 1.0,
        "cosine": 0.2,
        "gate": -math.inf,
        "signal": 0.0,
        "patience": 0,
        **settings,
    }
    return Climb(ORIGIN, kind(8, probe, seeded(), free), **settings)


def scripted(search, values):
    """Give the point each of the values in turn, and its probes the same; how many it took."""
    for k, value in enumerate(values, 1):
        search.tell(torch.full((len(search.ask()),), value))
        if search.ended:
            return k
    return len(values)


def near(points, goal):
    return 1 / (1 + distance(points, goal))


@pytest.mark.parametrize("kind", [Forward, Antithetic])
@pytest.mark.parametrize("clip", [1.0, None])
def test_it_climbs(kind, clip):
    goal = ORIGIN + 0.5
    search = climb(kind, clip=clip)
    for _ in range(40):
        search.tell(near(search.ask(), goal))
    assert search.ended is None
    assert near(search.best, goal) > 3 * near(ORIGIN, goal)
    assert search.value == pytest.approx(near(search.best, goal).item(), abs=0.01)


@pytest.mark.parametrize(
    ("slope", "clip", "length"), [(3.0, 1.0, 0.1), (3.0, None, 0.1), (1e-3, None, 0.1)]
)
def test_a_row_moves_by_a_step(slope, clip, length):
    search = climb(clip=clip)
    search.tell(slope * search.ask().sum((1, 2)))
    assert torch.allclose((search.point - ORIGIN).norm(dim=-1), torch.tensor(length), atol=1e-5)


def test_a_small_gradient_moves_by_less():
    search, estimator = climb(), Forward(8, 0.01, seeded())
    values = 1 + 1e-3 * (search.ask() - ORIGIN).sum((1, 2))
    search.tell(values)
    estimator.ask(ORIGIN)
    assert torch.allclose(search.point, ORIGIN + 0.1 * estimator.tell(values))
    assert 0 < (search.point - ORIGIN).norm(dim=-1).max() < 0.05


def test_frozen_rows_stay_where_they_are_at_the_floor_too():
    search = climb(free=FREE, step=50.0, cosine=0.9)
    for _ in range(3):
        search.tell(search.ask().sum((1, 2)).abs())
    assert torch.equal(search.point[1], ORIGIN[1])
    assert cosine(search.point[FREE], ORIGIN[FREE]) == pytest.approx(0.9, abs=1e-4)


def test_it_keeps_the_best_point():
    search = climb()
    points = []
    for value in (0.2, 0.5, 0.4, 0.5):
        points.append(search.point)
        search.tell(value + torch.linspace(0, 0.01, len(search.ask())))
    assert search.best is points[1]
    assert search.value == 0.5


@pytest.mark.parametrize(("first", "ended"), [(0.09, "gate"), (math.nan, "gate"), (0.11, None)])
def test_a_first_value_below_the_gate_ends_it(first, ended):
    search = climb(gate=0.1)
    assert scripted(search, [first, 0.05]) == (1 if ended else 2)
    assert search.ended == ended
    assert search.best is ORIGIN


def test_patience():
    search = climb(patience=3)
    assert scripted(search, [0.1, 0.2, 0.2, 0.1, 0.3, 0.3, 0.2, 0.1, 0.9]) == 8
    assert (search.ended, search.value) == ("patience", pytest.approx(0.3))
    assert scripted(climb(patience=0), [0.1] * 50) == 50


@pytest.mark.parametrize(("patience", "after"), [(5, 5), (0, 3)])
def test_steps_in_the_noise_are_skipped_and_end_it(patience, after):
    search = climb(signal=0.5, patience=patience)
    assert scripted(search, [0.1] * 9) == after
    assert search.ended == "signal"
    assert torch.equal(search.point, ORIGIN)


def test_a_clear_signal_is_followed_and_forgives_what_was_skipped():
    search = climb(signal=0.5)
    for k in range(9):
        n = len(search.ask()) - 1
        changes = (
            torch.ones(n) + 0.1 * torch.randn(n, generator=seeded(k))
            if k % 3 == 2
            else torch.zeros(n)
        )
        before = search.point
        search.tell(torch.cat([torch.zeros(1), changes]))
        assert torch.equal(search.point, before) == (k % 3 < 2)
    assert search.ended is None


@pytest.mark.parametrize("where", [0, 4])
def test_what_is_not_a_number_ends_it(where):
    search = climb()
    scripted(search, [0.1, 0.3])
    best, values = search.best, torch.full((len(search.ask()),), 0.2)
    values[where] = math.nan
    search.tell(values)
    assert search.ended == "not finite"
    assert search.best is best
    assert torch.isfinite(best).all()
