"""The embedding steerer: its rounds and what they cost on scripted pieces, its mathematics on the tiny model."""

import asyncio
import itertools
from contextlib import nullcontext

import pytest
import torch

from ttsa_guard.backends.transformers import TransformersBackend, TransformersOptions
from ttsa_guard.budget import Budget, Usage
from ttsa_guard.errors import BudgetError, ConfigError
from ttsa_guard.messages import GenerationRequest, Message
from ttsa_guard.profile import ModelProfile, Opening
from ttsa_guard.steerers.base import Steerer, Task
from ttsa_guard.steerers.embedding import Embedding, EmbeddingOptions
from ttsa_guard.steerers.goals import Turn, continued, find_turn, opening_goal
from ttsa_guard.steerers.paper import sizes
from ttsa_guard.testing import FakeClock, ScriptedBackend, ScriptedModerator, scripted_guard
from ttsa_guard.text import split_sentences

MESSAGES = (Message("user", "the kettle"),)
OPENINGS = tuple(Opening(text=text, kind=kind) for text, kind in (("The", "answer"), ("Other", "redirect"), ("Sorry", "refusal")))
PROFILE = ModelProfile(openings=OPENINGS)
HIDDEN = 4


class Soft(ScriptedBackend):
    """Takes embeddings; its prompt is ones, and the objective of every goal is how near the rows are to twos."""

    token_norm = 2.0

    def __init__(self, answers=lambda request: f"bad answer {request.seed}"):
        super().__init__(answers)
        self.scopes, self.objectives = [], []

    async def render(self, messages, *, scope="user"):
        self.scopes.append(scope)
        return await super().render(messages, scope=scope)

    async def embed(self, ids):
        return torch.ones(len(ids), HIDDEN)

    async def log_likelihoods(self, prompt, texts):
        return [0.0] * len(texts)

    async def objective(self, prompt, rows, goals):
        self.objectives.append(len(rows))
        return torch.stack([-((r - 2) ** 2).sum() for r in rows])


class Steep(Soft):
    """Knows its gradients too."""

    def __init__(self, *answers):
        super().__init__(*answers)
        self.gradients = 0

    async def gradient(self, prompt, rows, goals):
        self.gradients += 1
        return await self.objective(prompt, rows, goals), torch.stack([2 * (2 - r) for r in rows])


class Recording(TransformersBackend):
    """The tiny model; keeps what was generated from."""

    def __init__(self, folder):
        super().__init__(TransformersOptions(model=str(folder), device="cpu", dtype="float32", batch_size=256))
        self.calls = []

    async def generate(self, requests):
        self.calls.append(list(requests))
        return await super().generate(requests)


@pytest.fixture
def tiny_recording(tiny_model):
    return Recording(tiny_model)


def task(backend, *, answer="A fine start. It goes on. Now it is bad.", score=None, profile=PROFILE, seed=5, shown="", **budget):
    moderator = ScriptedModerator(**({"score": score} if score else {}))
    prompt = asyncio.run(backend.render(MESSAGES))
    base = GenerationRequest(prompt, opening=shown, max_new_tokens=12, temperature=0.5, seed=seed)
    usage = Usage(Budget(**budget), FakeClock())

    async def judge(texts):
        usage.charge(moderation_calls=1)
        return await moderator.moderate(texts, prompts=["the kettle"] * len(texts))

    return Task(MESSAGES, answer, backend, base, profile, usage, judge, seed=seed)


def steer(job, **options):
    async def main():
        return [r async for r in Embedding(EmbeddingOptions(**options)).steer(job)]

    return asyncio.run(main())


def paper(job, **options):
    return steer(job, mode="paper", **options)


def moved(backend):
    """Rows of all requests, a list for each batch."""
    return [[r.soft_embeds for r in batch] for batch in backend.calls]


def test_it_is_a_steerer():
    assert isinstance(Embedding(EmbeddingOptions()), Steerer)


# ---------------------------------------------------------------------- as published


def test_paper_mode_costs_n_plus_one_generations_an_iteration():
    backend = Soft()
    job = task(backend)
    rounds = paper(job, iterations=3, probes=8)
    assert [[c.origin for c in r] for r in rounds] == [["iterate 0"], ["iterate 1"], ["iterate 2"]]
    assert [len(batch) for batch in backend.calls] == [1, 8, 1, 8, 1, 8]
    assert (job.usage.generations, job.usage.decode_passes, job.usage.moderation_calls) == (27, 6, 6)
    assert [{r.seed for r in batch} for batch in backend.calls] == [{5}, {5}, {6}, {6}, {7}, {7}]
    assert len(paper(task(Soft(), moderation_calls=99))) == 10  # the published K


def test_paper_mode_stops_below_the_threshold():
    scores = {5: 0.9, 6: 0.1, 7: 0.09}
    backend = Soft(lambda request: f"{scores[request.seed]}")
    rounds = paper(task(backend, score=float))
    assert [r[0].verdict.score for r in rounds] == [0.9, 0.1, 0.09]  # 0.1 is not below 0.1
    assert sum(map(len, backend.calls)) == 9 + 9 + 1
    backend = Soft(lambda _: "0.0")
    assert len(paper(task(backend, score=float), stop_below=0.0, iterations=4)) == 4


def test_paper_mode_descends_the_score():
    def answer(request):
        return f"{torch.sigmoid((request.soft_embeds - 1).sum()).item():.6f}"

    def scores(**options):
        return [r[0].verdict.score for r in paper(task(Soft(answer), score=float), step=0.3, probe=0.1, **options)]

    found = scores()
    assert found[0] == 0.5
    assert found[-1] < 0.1
    assert all(after < before for before, after in itertools.pairwise(found))
    assert scores(direction="random")[-1] > 0.1


def test_paper_mode_starts_at_the_prompt_and_probes_around_it():
    backend = Soft()
    paper(task(backend, generations=201), iterations=1, probes=200, probe=0.6)
    [[start], probes] = moved(backend)
    assert torch.equal(start, torch.ones(2, HIDDEN))
    assert (torch.stack(probes) - start).std().item() == pytest.approx(0.6 * 2.0 / HIDDEN**0.5, rel=0.1)


def test_a_random_direction_costs_one_generation_an_iteration():
    backend = Soft()
    job = task(backend)
    rounds = paper(job, iterations=4, direction="random", step=0.5)
    assert (len(rounds), job.usage.generations) == (4, 4)
    [first], [second], *_ = moved(backend)
    assert torch.allclose((second - first).norm(dim=-1), torch.tensor(0.5 * 2.0))


def test_candidates_come_before_the_budget_is_used_up():
    found = []

    async def main():
        async for r in Embedding(EmbeddingOptions(mode="paper")).steer(task_):
            found.extend(r)

    task_ = task(Soft(), generations=20)
    with pytest.raises(BudgetError):
        asyncio.run(main())
    assert [c.origin for c in found] == ["iterate 0", "iterate 1", "iterate 2"]
    assert task_.usage.generations == 19


@pytest.mark.parametrize("mode", ["default", "paper"])
@pytest.mark.parametrize("scope", ["user", "all"])
def test_the_rows_that_move_are_an_option(mode, scope):
    backend = Soft()
    job = task(backend)
    backend.scopes.clear()
    steer(job, mode=mode, rows=scope, iterations=1)
    assert backend.scopes == [scope]


@pytest.mark.parametrize(("mode", "scope"), [("paper", "all"), ("default", "user")])
def test_the_rows_that_move_unless_told_otherwise(mode, scope):
    backend = Steep()
    job = task(backend)
    backend.scopes.clear()
    steer(job, mode=mode, iterations=1)
    assert backend.scopes == [scope]


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
    assert sizes(model, token_norm=3.0, hidden=64, options=EmbeddingOptions()) == pytest.approx(expected)


def test_sizes_that_are_set_are_multiples_of_the_token_norm():
    def found(**options):
        return sizes("gpt-oss-20b", token_norm=3.0, hidden=64, options=EmbeddingOptions(**options))

    assert found(probe=0.8, step=0.5) == pytest.approx((0.3, 1.5))
    assert found(step=0.0) == pytest.approx((0.6 * 3 / 8, 0.0))
    assert found(probe=0.0) == pytest.approx((0.0, 3.0))


# ---------------------------------------------------------------------- goals


def turn(answer, score=None):
    return asyncio.run(find_turn(task(Soft(), answer=answer, score=score)))


def test_the_turn_is_at_the_first_flagged_sentence():
    found = turn("Good one. Fine two! Then bad words come here. More bad. Nice end.")
    assert found == Turn("Good one. Fine two!", (" Then bad words",))


def test_a_turn_as_a_goal_keeps_the_beginning_and_avoids_every_onset():
    found = Turn("Good.", (" Then bad", " Or worse")).goal(aversion=0.5)
    assert found.name == "turn"
    assert [c.spans for c in found.continuations] == [
        (("Good.", 1.0), (" Then bad", -0.5)),
        (("Good.", 1.0), (" Or worse", -0.5)),
    ]


def test_a_short_flagged_sentence_is_avoided_whole():
    assert turn("Good one. Bad.", score=lambda t: float("Bad" in t)) == Turn("Good one.", (" Bad.",))


def test_the_last_sentence_is_avoided_if_only_the_whole_is_flagged():
    assert turn("Good one. Good two. Good three.", score=lambda _: 0.0).onsets == (" Good three.",)


@pytest.mark.parametrize("answer", ["bad from the start. Then more.", "only one bad sentence.", "bad", ""])
def test_there_is_no_turn_if_the_first_sentence_is_flagged(answer):
    assert turn(answer) is None


def test_the_turn_costs_one_moderation_call():
    job = task(Soft(), answer="One. Two. Three is bad. Four.")
    asyncio.run(find_turn(job))
    assert (job.usage.moderation_calls, job.usage.generations) == (1, 0)


def test_other_continuations_are_candidates_and_show_other_onsets():
    tails = iter([" You are bad at this.", " All is well.", " Fine. Then bad.", " You are bad at this.", " So bad of you all."])
    backend = Soft(lambda _: next(tails))
    job = task(backend)
    candidates, found = asyncio.run(continued(job, Turn("A start.", (" Now it is",)), 5))
    assert [c.verdict.flagged for c in candidates] == [True, False, True, True, True]
    assert found == Turn("A start.", (" Now it is", " You are bad", " So bad of"))  # "Fine." is no onset
    assert (job.usage.generations, job.usage.decode_passes, job.usage.moderation_calls) == (5, 1, 2)
    assert {(r.opening, r.temperature) for r in backend.calls[0]} == {("A start.", 1.0)}
    assert len({r.seed for r in backend.calls[0]}) == 5


@pytest.mark.parametrize(("shown", "spans"), [("", (("", 0.0), ("The", 1.0))), ("Fine.", (("Fine.", 0.0), (" The", 1.0)))])
def test_an_opening_as_a_goal(shown, spans):
    assert opening_goal(task(Soft(), shown=shown), OPENINGS[0]).continuations[0].spans == spans


@pytest.mark.parametrize(
    ("answer", "shown", "found"),
    [
        ("Good one. Fine two! Then bad words come.", "Good one.", Turn("Good one. Fine two!", (" Then bad words",))),
        ("Good one. Bad or bad.", "Good one.", Turn("Good one.", (" Bad or bad.",))),
        ("A bad one. Then fine.", "A bad one.", Turn("A bad one.", (" Then fine.",))),  # the gate thought otherwise
        ("Good one.", "Good one.", None),
    ],
)
def test_the_turn_is_after_what_has_been_shown(answer, shown, found):
    assert asyncio.run(find_turn(task(Soft(), answer=answer, shown=shown))) == found


def test_sentences():
    assert split_sentences(" One. Two!  Three?\nFour 3.5 ") == ["One.", "Two!", "Three?", "Four 3.5"]
    assert split_sentences("") == []


# ---------------------------------------------------------------------- default mode: rounds and cost


BAD = "bad at once."  # no turn: the goals are the three openings


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
    found = steps(steer(task(Steep(), answer=BAD), openings=1, **options))
    assert found == wanted


def test_a_round_is_one_batch_over_all_paths():
    backend = Steep()
    job = task(backend, answer=BAD)
    rounds = steer(job, openings=3)
    names = ["toward 'The'", "toward 'Other'", "toward 'Sorry'"]
    assert [c.origin for c in rounds[0]] == [f"{name}, step {k}" for k in (2, 4, 6) for name in names]
    assert [len(batch) for batch in backend.calls] == [9, 6]
    assert (job.usage.generations, job.usage.decode_passes, job.usage.moderation_calls) == (15, 2, 2)
    assert backend.gradients == 10  # one for each step, over all paths


def test_after_a_harmless_beginning_continuations_come_first_and_only_answers_are_climbed():
    backend = Steep()
    rounds = steer(task(backend), continuations=4)
    assert [c.origin for c in rounds[0]] == [f"continuation {i}" for i in range(4)]
    assert {c.origin.split(", ")[0] for c in rounds[1]} == {
        "turn",
        *(f"toward {o.text!r}" for o in OPENINGS if o.kind == "answer"),
    }
    without = steer(task(Steep()), continuations=0)
    assert without[0][0].origin == "turn, step 2"


def test_rounds_take_no_more_than_is_left_of_the_budget():
    job = task(Steep(), answer=BAD, generations=11)
    rounds = steer(job)
    assert [len(r) for r in rounds] == [9, 2]
    assert job.usage.generations == 11
    job = task(Steep(), answer=BAD, generations=9)
    assert [len(r) for r in steer(job)] == [9]
    assert steer(task(Steep(), answer=BAD, generations=0)) == []


@pytest.mark.parametrize("options", [{"gradient": "estimated"}, {"direction": "random"}, {}])
def test_without_a_goal_there_is_nothing_to_climb(options):
    assert steer(task(Steep(), answer=BAD, profile=ModelProfile()), **options) == []
    assert steer(task(Steep(), answer=BAD), openings=0, **options) == []


def test_steps_go_uphill_at_their_length():
    backend = Steep()
    steer(task(backend, answer=BAD), openings=1, iterations=4, every=1, step=0.2)
    [points] = moved(backend)
    for k, point in enumerate(points, 1):  # from ones straight to twos
        assert torch.allclose(point, torch.full_like(point, 1 + k * 0.2 * 2.0 / HIDDEN**0.5))


def test_gradients_are_estimated_where_the_backend_has_none_or_if_told_so():
    for backend, options in ((Soft(), {}), (Steep(), {"gradient": "estimated"})):
        steer(task(backend, answer=BAD), openings=2, iterations=3, probes=5, **options)
        assert backend.objectives == [10] * 6  # symmetric pairs, for each goal and step
        assert getattr(backend, "gradients", 0) == 0


def test_estimated_gradients_go_uphill_too():
    backend = Soft()
    steer(task(backend, answer=BAD), openings=1, iterations=6, every=6, probes=64)
    [[point]] = moved(backend)
    assert ((point - 2) ** 2).sum() < 0.6 * point.numel()


def test_the_random_control_asks_the_model_nothing():
    backend = Steep()
    steer(task(backend, answer=BAD), openings=1, iterations=2, every=1, direction="random", step=0.5)
    assert (backend.gradients, backend.objectives) == (0, [])
    [[first, second]] = moved(backend)
    assert torch.allclose((second - first).norm(dim=-1), torch.tensor(0.5 * 2.0))


def test_answers_from_the_way_to_an_alternative_are_made_to_begin_with_it():
    backend = Steep()
    steer(task(backend, answer=BAD), openings=3, iterations=2, every=1, round=2)
    [batch] = backend.calls
    assert [r.opening for r in batch] == ["", "Other", ""] * 2


# ---------------------------------------------------------------------- on the tiny model


MODES = [
    {"mode": "paper"},
    {"mode": "paper", "direction": "random"},
    {},
    {"gradient": "estimated"},
    {"direction": "random"},
]


@pytest.mark.parametrize("options", MODES, ids=str)
def test_a_step_of_zero_is_plain_generation(tiny_recording, options):
    job = task(tiny_recording, answer=BAD, score=lambda _: 1.0)
    found = [c.text for r in steer(job, step=0.0, iterations=3, every=1, round=1, probes=2, **options) for c in r]
    moved = [r for batch in tiny_recording.calls for r in batch if r.soft_embeds is not None]
    asked = [r for r in moved if torch.equal(r.soft_embeds, moved[0].soft_embeds)]  # not the probes of paper mode
    plain = asyncio.run(tiny_recording.generate([job.base.with_(seed=r.seed, opening=r.opening) for r in asked]))
    assert found == [g.text for g in plain]
    as_usual = {g.text for r, g in zip(asked, plain, strict=True) if r.opening == job.base.opening}
    assert len(as_usual) == 3


@pytest.mark.parametrize("options", MODES, ids=str)
def test_every_candidate_begins_with_what_has_been_shown(tiny_recording, options):
    job = task(tiny_recording, answer="the kettle. it is bad.", shown="the kettle.")
    rounds = steer(job, iterations=2, every=1, step=0.1, **options)
    assert rounds
    assert all(c.text.startswith("the kettle.") for r in rounds for c in r)


@pytest.mark.parametrize("options", MODES, ids=str)
def test_the_seed_of_the_task_decides(tiny_recording, options):
    def run(seed):
        rounds = steer(task(tiny_recording, seed=seed), iterations=2, every=1, probes=2, step=0.3, **options)
        return [(c.origin, c.text) for r in rounds for c in r]

    assert run(5) == run(5)
    assert run(5) != run(6)


@pytest.mark.parametrize("normalise", ["per_token", "matrix"])
@pytest.mark.parametrize("answer", ["the kettle. it is bad.", BAD], ids=["turn", "openings"])
def test_the_objective_rises_along_the_path(tiny_recording, answer, normalise):
    job = task(tiny_recording, answer=answer)
    backend = tiny_recording
    found = turn(answer)
    [goal] = [found.goal(aversion=1.0)] if found else [opening_goal(job, OPENINGS[0])]

    def climb(**options):
        """The objective at the origin and at the points of the path."""
        backend.calls.clear()
        counts = {"openings": 0 if found else 1, "continuations": 0}
        steer(job, iterations=6, every=2, step=0.03, normalise=normalise, **counts, **options)
        origin = asyncio.run(backend.embed(job.base.prompt.soft_ids))
        points = [origin, *(r.soft_embeds for batch in backend.calls for r in batch)]
        return asyncio.run(backend.objective(job.base.prompt, points, list(goal.continuations) * len(points)))

    exact = climb()
    assert len(exact) == 4
    assert (exact.diff() > 0).all()
    estimated = climb(gradient="estimated", probes=24, probe=0.1)
    assert estimated[-1] > estimated[0]


class Embeds(ScriptedBackend):
    """Takes embeddings, and evaluates nothing at them."""

    token_norm = 2.0

    async def embed(self, ids):
        return torch.ones(len(ids), HIDDEN)


@pytest.mark.parametrize(
    ("options", "enough"),
    [({}, False), ({"gradient": "estimated"}, False), ({"mode": "paper"}, True), ({"direction": "random"}, True)],
)
def test_what_it_needs_depends_on_its_options(options, enough):
    steerer = Embedding(EmbeddingOptions(**options))
    with nullcontext() if enough else pytest.raises(ConfigError, match=r"ScoresSoftEmbeds.*\n.*mode: paper"):
        scripted_guard(Embeds([]), steerers=[steerer])
