"""Plans that are easy to reckon with, and a model whose work takes the same on any machine."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ttsa_guard.backends.local.batching import Batcher
from ttsa_guard.messages import Generation
from ttsa_guard.plan.config import PlanConfig
from ttsa_guard.plan.costs import Costs
from ttsa_guard.settings import validated
from ttsa_guard.steerers.baselines.resample import Resample, ResampleOptions
from ttsa_guard.testing import ScriptedBackend, ScriptedModerator, scripted_guard

SEARCH = {"passes": 2, "generations": 8, "tokens": 320, "calls": 2}
COSTS = {"step": [[1, 0.01], [32, 0.02]], "prefill": 1e-5, "rows": 32}


@pytest.fixture
def plan():
    """Makes settings from changes to simple ones."""

    def make(**changes):
        gate = {"p50": 0.05}
        settings = {
            "costs": COSTS,
            "searches": [SEARCH],
            "gate": gate,
            "flags": 0.2,
            "samples": 200,
            "rate": 4.0,
        }
        return validated(PlanConfig, {**settings, **changes}, where="plan")

    return make


class Sleeping(ScriptedBackend):
    """Meets requests in batches as the local backend does; a batch sleeps as long as its costs say.
    Plain answers to every third length of prompt are bad, what is drawn at a higher temperature is
    fine."""

    costs = Costs(step=((1, 0.002), (16, 0.004)), call=0.01, prefill=5e-5, rows=16)

    def __init__(self):
        super().__init__([])
        worker = ThreadPoolExecutor(1)
        self._batch, self._scored = Batcher(self._work, worker), Batcher(self._score, worker)

    async def generate(self, requests):
        return await self._batch(requests)

    def _work(self, requests, _):
        answers = [self._answered(request) for request in requests]
        time.sleep(
            self.costs.calling([a.tokens for a in answers], sum(len(r.prompt) for r in requests))
        )
        return answers

    async def log_likelihoods(self, prompt, texts):
        return await self._scored(texts)

    def _score(self, texts, _):
        time.sleep(0.03)
        return [-0.1 for _ in texts]

    def _answered(self, request):
        tokens = min(request.max_new_tokens, 36 + 7 * (len(request.prompt) + request.seed) % 40)
        bad = len(request.prompt) % 3 == 0 and request.temperature < 0.5
        return Generation(
            "a bad answer." if bad else f"a fine and long answer, number {request.seed % 5}.",
            tokens,
            True,
        )


@pytest.fixture
def sleeping():
    """A guard over a model that sleeps."""
    steerer = Resample(ResampleOptions(n=6, temperature=1.0))
    return scripted_guard(Sleeping(), gate=ScriptedModerator(name="gate"), steerers=[steerer])
