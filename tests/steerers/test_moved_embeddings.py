"""What the steerers that search with moved embeddings have in common."""

import asyncio
from functools import partial

import pytest
import torch

from ttsa_guard.steerers.baselines.tsa import Tsa, TsaOptions
from ttsa_guard.steerers.embedding import Embedding, EmbeddingOptions

from .embeddings import BAD, Soft, Steep, steer, task


def tsa(**options):
    return Tsa(TsaOptions(**options))


def embedding(**options):
    return Embedding(EmbeddingOptions(every=1, round=1, **options))


WAYS = {
    "tsa": tsa,
    "tsa-random": partial(tsa, direction="random"),
    "embedding": embedding,
    "embedding-estimated": partial(embedding, gradient="estimated"),
    "embedding-random": partial(embedding, direction="random"),
}
every_way = pytest.mark.parametrize("make", WAYS.values(), ids=WAYS)


@pytest.mark.parametrize("make", [tsa, embedding])
@pytest.mark.parametrize("scope", ["user", "all"])
@pytest.mark.parametrize("option", ["scope", "rows"])
def test_the_tokens_that_move_are_an_option_under_its_old_name_too(make, scope, option):
    backend = Soft()
    job = task(backend)
    backend.scopes.clear()
    steer(make(iterations=1, **{option: scope}), job)
    assert backend.scopes == [scope]


@pytest.mark.parametrize(("make", "scope"), [(tsa, "all"), (embedding, "user")])
def test_the_tokens_that_move_unless_told_otherwise(make, scope):
    backend = Steep()
    job = task(backend)
    backend.scopes.clear()
    steer(make(iterations=1), job)
    assert backend.scopes == [scope]


@every_way
def test_a_step_of_zero_is_plain_generation(tiny_recording, make):
    job = task(tiny_recording, answer=BAD, score=lambda _: 1.0)
    found = [c.text for r in steer(make(step=0.0, iterations=3, probes=2), job) for c in r]
    moved = [r for batch in tiny_recording.calls for r in batch if r.soft_embeds is not None]
    # not the probes of tsa
    asked = [r for r in moved if torch.equal(r.soft_embeds, moved[0].soft_embeds)]
    plain = asyncio.run(
        tiny_recording.generate([job.base.with_(seed=r.seed, opening=r.opening) for r in asked])
    )
    assert found == [g.text for g in plain]
    as_usual = {g.text for r, g in zip(asked, plain, strict=True) if r.opening == job.base.opening}
    assert len(as_usual) == 3


@every_way
def test_every_candidate_begins_with_what_has_been_shown(tiny_recording, make):
    job = task(tiny_recording, answer="the kettle. it is bad.", shown="the kettle.")
    rounds = steer(make(iterations=2, step=0.1), job)
    assert rounds
    assert all(c.text.startswith("the kettle.") for r in rounds for c in r)


@every_way
def test_the_seed_of_the_task_decides(tiny_recording, make):
    def run(seed):
        rounds = steer(make(iterations=2, probes=2, step=0.3), task(tiny_recording, seed=seed))
        return [(c.origin, c.text) for r in rounds for c in r]

    assert run(5) == run(5)
    assert run(5) != run(6)
