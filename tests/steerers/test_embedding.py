"""The embedding steerer: its rounds and what they cost on scripted pieces, its mathematics on the
tiny model."""

import asyncio
from contextlib import nullcontext

import pytest
import torch

from ttsa_guard.config import GuardConfig
from ttsa_guard.errors import ConfigError
from ttsa_guard.guard import Guard
from ttsa_guard.profile import ModelProfile
from ttsa_guard.steerers.base import Steerer
from ttsa_guard.steerers.embedding import Embedding, EmbeddingOptions
from ttsa_guard.steerers.objectives import find_derailment, opening_objective
from ttsa_guard.testing import ScriptedBackend, scripted_guard

from .embeddings import BAD, HIDDEN, OPENINGS, Soft, Steep, moved, steer, task


def climb(job, **options):
    return steer(Embedding(EmbeddingOptions(**options)), job)


def test_it_is_a_steerer():
    assert isinstance(Embedding(EmbeddingOptions()), Steerer)


@pytest.mark.parametrize("mode", ["paper", "default"])
def test_its_former_mode_is_refused_with_what_to_write_instead(mode):
    config = GuardConfig.parse({"steerers": [{"use": "embedding", "options": {"mode": mode}}]})
    with pytest.raises(
        ConfigError, match=r"'steerers.embedding'.*no option 'mode' any more.*'use: tsa'"
    ):
        Guard.from_config(config, backend=Steep([]))


# ---------------------------------------------------------------------- rounds and cost


def steps(rounds):
    return [[c.origin.split(", step ")[1] for c in r] for r in rounds]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["246", "8 10"]),
        ({"iterations": 4}, ["24"]),
        ({"iterations": 5, "every": 3, "round": 3}, ["3", "5"]),
        ({"iterations": 3, "every": 1, "round": 1}, ["1", "2", "3"]),
        ({"iterations": 5, "every": 4, "round": 2}, ["4", "5"]),
        ({"iterations": 1}, ["1"]),
    ],
)
def test_candidates_come_every_few_steps_in_rounds(options, expected):
    wanted = [r.split() if " " in r else list(r) for r in expected]
    found = steps(climb(task(Steep(), answer=BAD), openings=1, **options))
    assert found == wanted


def test_a_round_is_one_batch_over_all_paths():
    backend = Steep()
    job = task(backend, answer=BAD)
    rounds = climb(job, openings=3)
    names = ["toward 'The'", "toward 'Other'", "toward 'Sorry'"]
    assert [c.origin for c in rounds[0]] == [
        f"{name}, step {k}" for k in (2, 4, 6) for name in names
    ]
    assert [len(batch) for batch in backend.calls] == [9, 6]
    assert (job.usage.generations, job.usage.decode_passes, job.usage.moderation_calls) == (
        15,
        2,
        2,
    )
    assert backend.gradients == 10  # one for each step, over all paths


def test_after_a_harmless_beginning_continuations_come_first_and_only_answers_are_climbed():
    backend = Steep()
    rounds = climb(task(backend), continuations=4)
    assert [c.origin for c in rounds[0]] == [f"continuation {i}" for i in range(4)]
    assert {c.origin.split(", ")[0] for c in rounds[1]} == {
        "derailment",
        *(f"toward {o.text!r}" for o in OPENINGS if o.kind == "answer"),
    }
    without = climb(task(Steep()), continuations=0)
    assert without[0][0].origin == "derailment, step 2"


def test_rounds_take_no_more_than_is_left_of_the_budget():
    job = task(Steep(), answer=BAD, generations=11)
    rounds = climb(job)
    assert [len(r) for r in rounds] == [9, 2]
    assert job.usage.generations == 11
    job = task(Steep(), answer=BAD, generations=9)
    assert [len(r) for r in climb(job)] == [9]
    assert climb(task(Steep(), answer=BAD, generations=0)) == []


@pytest.mark.parametrize("options", [{"gradient": "estimated"}, {"direction": "random"}, {}])
def test_without_an_objective_there_is_nothing_to_climb(options):
    assert climb(task(Steep(), answer=BAD, profile=ModelProfile()), **options) == []
    assert climb(task(Steep(), answer=BAD), openings=0, **options) == []


def test_steps_go_uphill_at_their_length():
    backend = Steep()
    climb(task(backend, answer=BAD), openings=1, iterations=4, every=1, step=0.2)
    [points] = moved(backend)
    for k, point in enumerate(points, 1):  # from ones straight to twos
        assert torch.allclose(point, torch.full_like(point, 1 + k * 0.2 * 2.0 / HIDDEN**0.5))


def test_gradients_are_estimated_where_the_backend_has_none_or_if_told_so():
    for backend, options in ((Soft(), {}), (Steep(), {"gradient": "estimated"})):
        climb(task(backend, answer=BAD), openings=2, iterations=3, probes=5, **options)
        assert backend.objectives == [10] * 6  # symmetric pairs, for each objective and step
        assert getattr(backend, "gradients", 0) == 0


def test_estimated_gradients_go_uphill_too():
    backend = Soft()
    climb(task(backend, answer=BAD), openings=1, iterations=6, every=6, probes=64)
    [[point]] = moved(backend)
    assert ((point - 2) ** 2).sum() < 0.6 * point.numel()


def test_the_random_control_asks_the_model_nothing():
    backend = Steep()
    climb(
        task(backend, answer=BAD), openings=1, iterations=2, every=1, direction="random", step=0.5
    )
    assert (backend.gradients, backend.objectives) == (0, [])
    [[first, second]] = moved(backend)
    assert torch.allclose((second - first).norm(dim=-1), torch.tensor(0.5 * 2.0))


def test_answers_from_the_way_to_an_alternative_are_made_to_begin_with_it():
    backend = Steep()
    climb(task(backend, answer=BAD), openings=3, iterations=2, every=1, round=2)
    [batch] = backend.calls
    assert [r.opening for r in batch] == ["", "Other", ""] * 2


# ---------------------------------------------------------------------- on the tiny model


@pytest.mark.parametrize("normalise", ["per_token", "matrix"])
@pytest.mark.parametrize("answer", ["the kettle. it is bad.", BAD], ids=["derailment", "openings"])
def test_the_objective_rises_along_the_path(tiny_recording, answer, normalise):
    job = task(tiny_recording, answer=answer)
    backend = tiny_recording
    derailment = asyncio.run(find_derailment(job))
    objective = (
        derailment.objective(aversion=1.0) if derailment else opening_objective(job, OPENINGS[0])
    )

    def path(**options):
        """The objective at the origin and at the points of the path."""
        backend.calls.clear()
        counts = {"openings": 0 if derailment else 1, "continuations": 0}
        climb(job, iterations=6, every=2, step=0.03, normalise=normalise, **counts, **options)
        origin = asyncio.run(backend.embed(job.base.prompt.soft_ids))
        points = [origin, *(r.soft_embeds for batch in backend.calls for r in batch)]
        return asyncio.run(
            backend.objective(job.base.prompt, points, list(objective.continuations) * len(points))
        )

    exact = path()
    assert len(exact) == 4
    assert (exact.diff() > 0).all()
    estimated = path(gradient="estimated", probes=24, probe=0.1)
    assert estimated[-1] > estimated[0]


class Embeds(ScriptedBackend):
    """Takes embeddings, and evaluates nothing at them."""

    token_norm = 2.0

    async def embed(self, ids):
        return torch.ones(len(ids), HIDDEN)


@pytest.mark.parametrize(
    ("options", "enough"),
    [({}, False), ({"gradient": "estimated"}, False), ({"direction": "random"}, True)],
)
def test_what_it_needs_depends_on_its_options(options, enough):
    steerer = Embedding(EmbeddingOptions(**options))
    with (
        nullcontext()
        if enough
        else pytest.raises(ConfigError, match=r"ScoresSoftEmbeds.*\n.*'tsa'")
    ):
        scripted_guard(Embeds([]), steerers=[steerer])
