"""Random steps of the input embeddings, and the way back."""

import asyncio

import pytest
import torch

from ttsa_guard.profile import ModelProfile, Opening
from ttsa_guard.steerers.baselines.random_perturbation import (
    RandomPerturbation,
    RandomPerturbationOptions,
)
from ttsa_guard.testing import ScriptedBackend, scripted_guard

PROFILE = ModelProfile(openings=(Opening(text="Instead of", kind="redirect"),))
LATE, EARLY = "A fine start. Then a bad end.", "A bad thing from the start."
NORM, HIDDEN = 2.0, 16


class Edge(ScriptedBackend):
    """Answers badly up to a distance of its rows from where they were, which is ones; the answer
    says how far they are."""

    token_norm = NORM

    def __init__(self, edge):
        super().__init__(
            lambda request: (
                "a bad thing"
                if self.distance(request) <= edge
                else f"{self.distance(request):.4f} away"
            )
        )

    @staticmethod
    def distance(request):
        return float((request.soft_embeds - 1).norm(dim=-1).mean())

    async def embed(self, ids):
        return torch.ones(len(ids), HIDDEN)

    async def log_likelihoods(self, prompt, texts):
        """The nearer to the prompt as it is, the likelier."""
        return [-float(text.split()[-2]) for text in texts]


def review(edge, answer=LATE, *, floor=None, budget=None, **options):
    backend = Edge(edge)
    guard = scripted_guard(
        backend,
        steerers=[RandomPerturbation(RandomPerturbationOptions(**options))],
        profile=PROFILE,
        quality={"floor": floor, "shortest": 1},
        budget=budget or {},
    )
    return asyncio.run(guard.review("one two three", answer)), backend


def test_every_row_makes_a_step_of_the_length_in_directions_of_its_own():
    outcome, backend = review(0.0, length=1.5, directions=4, shrink=0)
    [batch] = backend.calls
    steps = torch.stack([r.soft_embeds - 1 for r in batch])
    assert torch.allclose(steps.norm(dim=-1), torch.tensor(1.5 * NORM))
    flat = steps.flatten(0, 1) / (1.5 * NORM)
    assert (flat @ flat.T - torch.eye(len(flat))).abs().max() < 0.9
    assert (outcome.action, outcome.record.generations) == ("swap", 4)


def test_the_way_back_ends_at_the_least_that_is_safe():
    edge = 1.0
    # The guard finds all of them too unlikely but the nearest.
    found = {
        shrink: review(edge, length=1.5, directions=2, shrink=shrink, floor=-1.1)
        for shrink in (0, 6)
    }
    assert found[0][0].action == "fallback"
    outcome, backend = found[6]
    assert outcome.action == "swap"
    assert edge < float(outcome.text.split()[0]) <= 1.1
    assert len(backend.calls) < 1 + 6  # it ends with the first that is good


def test_flagged_perturbations_have_no_way_back():
    outcome, backend = review(100.0, directions=3)
    assert (outcome.action, outcome.record.generations, len(backend.calls)) == ("fallback", 3, 1)


def test_a_perturbation_of_length_0_is_plain_generation():
    _, backend = review(-1.0, length=0, directions=1, shrink=0)
    [[request]] = backend.calls
    assert torch.equal(request.soft_embeds, torch.ones(3, HIDDEN))


def test_where_the_answer_was_bad_from_the_start_every_second_one_is_an_alternative():
    _, backend = review(0.0, EARLY, directions=4, shrink=0)
    assert [r.opening for r in backend.calls[0]] == ["", "Instead of"] * 2


@pytest.mark.parametrize("generations", [2, 3, 5])
def test_it_stays_within_the_budget(generations):
    outcome, _ = review(1.0, directions=3, floor=-0.5, budget={"generations": generations})
    assert (outcome.action, outcome.record.generations) == ("fallback", generations)


def test_the_same_seed_perturbs_the_same_way():
    batches = [review(0.0, directions=2, shrink=0)[1].calls[0] for _ in range(2)]
    assert all(torch.equal(a.soft_embeds, b.soft_embeds) for a, b in zip(*batches, strict=True))
