"""The published algorithm, on scripted pieces."""

import asyncio
import itertools

import pytest
import torch

from ttsa_guard.errors import BudgetError
from ttsa_guard.steerers.base import Steerer
from ttsa_guard.steerers.baselines.tsa import Tsa, TsaOptions, step_sizes

from .embeddings import HIDDEN, Soft, moved, steer, task


def tsa(job, **options):
    return steer(Tsa(TsaOptions(**options)), job)


def test_it_is_a_steerer():
    assert isinstance(Tsa(TsaOptions()), Steerer)


def test_it_costs_n_plus_one_generations_an_iteration():
    backend = Soft()
    job = task(backend)
    rounds = tsa(job, iterations=3, probes=8)
    assert [[c.origin for c in r] for r in rounds] == [["iterate 0"], ["iterate 1"], ["iterate 2"]]
    assert [len(batch) for batch in backend.calls] == [1, 8, 1, 8, 1, 8]
    assert (job.usage.generations, job.usage.decode_passes, job.usage.moderation_calls) == (
        27,
        6,
        6,
    )
    assert [{r.seed for r in batch} for batch in backend.calls] == [{5}, {5}, {6}, {6}, {7}, {7}]
    assert len(tsa(task(Soft(), moderation_calls=99))) == 10  # the published K


def test_it_stops_below_the_threshold():
    scores = {5: 0.9, 6: 0.1, 7: 0.09}
    backend = Soft(lambda request: f"{scores[request.seed]}")
    rounds = tsa(task(backend, score=float))
    assert [r[0].verdict.score for r in rounds] == [0.9, 0.1, 0.09]  # 0.1 is not below 0.1
    assert sum(map(len, backend.calls)) == 9 + 9 + 1
    backend = Soft(lambda _: "0.0")
    assert len(tsa(task(backend, score=float), stop_below=0.0, iterations=4)) == 4


def test_it_descends_the_score():
    def answer(request):
        return f"{torch.sigmoid((request.soft_embeds - 1).sum()).item():.6f}"

    def scores(**options):
        return [
            r[0].verdict.score
            for r in tsa(task(Soft(answer), score=float), step=0.3, probe=0.1, **options)
        ]

    found = scores()
    assert found[0] == 0.5
    assert found[-1] < 0.1
    assert all(after < before for before, after in itertools.pairwise(found))
    assert scores(direction="random")[-1] > 0.1


def test_it_starts_at_the_prompt_and_probes_around_it():
    backend = Soft()
    tsa(task(backend, generations=201), iterations=1, probes=200, probe=0.6)
    [[start], probes] = moved(backend)
    assert torch.equal(start, torch.ones(2, HIDDEN))
    assert (torch.stack(probes) - start).std().item() == pytest.approx(
        0.6 * 2.0 / HIDDEN**0.5, rel=0.1
    )


def test_a_random_direction_costs_one_generation_an_iteration():
    backend = Soft()
    job = task(backend)
    rounds = tsa(job, iterations=4, direction="random", step=0.5)
    assert (len(rounds), job.usage.generations) == (4, 4)
    [first], [second], *_ = moved(backend)
    assert torch.allclose((second - first).norm(dim=-1), torch.tensor(0.5 * 2.0))


def test_candidates_come_before_the_budget_is_used_up():
    found = []

    async def main():
        async for r in Tsa(TsaOptions()).steer(task_):
            found.extend(r)

    task_ = task(Soft(), generations=20)
    with pytest.raises(BudgetError):
        asyncio.run(main())
    assert [c.origin for c in found] == ["iterate 0", "iterate 1", "iterate 2"]
    assert task_.usage.generations == 19


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("openai/gpt-oss-20b", (0.01, 1.5)),
        ("Qwen/Qwen3-14B", (0.05, 2.5)),
        ("meta-llama/Llama-3.1-8B-Instruct", (0.1, 1.3)),
        ("microsoft/Phi-3.5-mini-instruct", (0.05, 2.5)),
        ("/models/gemma-3-1b-it/", (0.075, 1.75)),
        ("somebody/else", (0.6 * 3.0 / 8, 3.0)),
        ("embedded", (0.6 * 3.0 / 8, 3.0)),
    ],
)
def test_sizes_are_those_of_table_3_where_it_has_the_model(model, expected):
    assert step_sizes(model, token_norm=3.0, hidden=64, options=TsaOptions()) == pytest.approx(
        expected
    )


def test_sizes_that_are_set_are_multiples_of_the_token_norm():
    def found(**options):
        return step_sizes("gpt-oss-20b", token_norm=3.0, hidden=64, options=TsaOptions(**options))

    assert found(probe=0.8, step=0.5) == pytest.approx((0.3, 1.5))
    assert found(step=0.0) == pytest.approx((0.6 * 3 / 8, 0.0))
    assert found(probe=0.0) == pytest.approx((0.0, 3.0))
