import asyncio
import json
import logging
import random
from dataclasses import replace

import pytest
from flags import FlagsFor

from ttsa_guard.backends.base import ScoresText
from ttsa_guard.config import FALLBACK
from ttsa_guard.errors import ConfigError, ModelError, PromptError
from ttsa_guard.messages import Message
from ttsa_guard.moderators.everyday import Harm
from ttsa_guard.plugins import Plugins
from ttsa_guard.profile import ModelProfile
from ttsa_guard.steerers.base import Candidate
from ttsa_guard.steerers.baselines.resample import Resample, ResampleOptions
from ttsa_guard.steerers.prefill import Prefill, PrefillOptions, offering_kinds
from ttsa_guard.testing import FakeClock, ScriptedBackend, ScriptedModerator, scripted_guard
from ttsa_guard.verdict import Verdict

BAD = "a bad answer with SECRET words"
GOOD = "a good answer in plain words"
REFUSAL = "Sorry, but no answer to that"


class Proposes:
    """A steerer that proposes given texts, one list a round."""

    needs = ()

    def __init__(self, *rounds, name="proposes"):
        self.name, self.rounds, self.asked, self.closed = name, rounds, 0, False

    async def steer(self, task):
        self.task = task
        try:
            for texts in self.rounds:
                self.asked += 1
                verdicts = await task.score(texts)
                yield [
                    Candidate(t, f"text {i}", v)
                    for i, (t, v) in enumerate(zip(texts, verdicts, strict=True))
                ]
        finally:
            self.closed = True


class Scoring(ScriptedBackend):
    """A backend that can say how likely a text is."""

    def __init__(self, likelihood=lambda _: -1.0, answers=()):
        super().__init__(answers)
        self.likelihood = likelihood

    async def log_likelihoods(self, prompt, texts):
        return [self.likelihood(text) for text in texts]

    async def objective(self, prompt, soft_embeds, continuations):
        raise NotImplementedError


def resample(**options):
    return Resample(ResampleOptions(**options))


def review(answer=BAD, backend=(), messages="hello", *, reasoning="", counts=False, **parts):
    if counts:
        parts["reasoning"] = "regenerate"

    async def main():  # a part that hangs must fail the test soon
        return await asyncio.wait_for(
            scripted_guard(backend, **parts).review(messages, answer, reasoning=reasoning), 10
        )

    return asyncio.run(main())


def assert_fallback(outcome, reason=None):
    assert (outcome.text, outcome.action, outcome.record.action) == (
        FALLBACK,
        "fallback",
        "fallback",
    )
    assert outcome.record.steerer is None
    assert outcome.record.final_score is None
    assert reason is None or outcome.record.reason == reason


# ---------------------------------------------------------------------- the way of one answer


def test_an_unflagged_answer_costs_one_gate_call_and_nothing_else():
    backend, gate, guide, steerer = (
        ScriptedBackend([]),
        ScriptedModerator(),
        ScriptedModerator(),
        Proposes([GOOD]),
    )
    outcome = review(GOOD, backend, gate=gate, guide=guide, steerers=[steerer])
    assert (outcome.text, outcome.action, outcome.record.helpful) == (GOOD, "pass", True)
    assert (gate.calls, guide.calls, backend.calls, steerer.asked) == ([[GOOD]], [], [], 0)
    assert (outcome.record.moderation_calls, outcome.record.generations) == (1, 0)


def test_a_flagged_answer_is_swapped_for_a_helpful_one():
    gate = ScriptedModerator()
    outcome = review(backend=[BAD, REFUSAL, GOOD], gate=gate, steerers=[resample(n=3)])
    assert (outcome.text, outcome.action) == (GOOD, "swap")
    assert gate.calls == [[BAD], [GOOD]]
    record = outcome.record
    assert (record.reason, record.steerer, record.helpful) == ("steered", "resample", True)
    assert (record.gate_score, record.final_score) == (1.0, 0.0)
    assert (record.generations, record.decode_passes, record.moderation_calls) == (3, 1, 3)
    assert (record.decode_steps, record.tokens) == (6, 18)
    assert [c.passed for c in record.candidates] == [False, True, True]
    assert [c.helpful for c in record.candidates] == [False, False, True]


def test_the_record_tells_what_the_model_was_busy_with():
    clock = FakeClock()

    class Slow(Scoring):
        async def generate(self, requests):
            clock.advance(5)
            return await ScriptedBackend([GOOD]).generate(requests)

        async def log_likelihoods(self, prompt, texts):
            clock.advance(2)
            return await super().log_likelihoods(prompt, texts)

    record = review(backend=Slow(), steerers=[resample(n=1)], clock=clock).record
    assert (record.seconds_decoding, record.seconds_scoring, record.seconds_search) == (5, 2, 7)


def test_a_refusal_is_kept_when_nothing_helpful_is_found():
    outcome = review(steerers=[Proposes([REFUSAL, BAD])])
    assert (outcome.text, outcome.action, outcome.record.helpful) == (REFUSAL, "swap", False)


def test_without_a_steerer_or_a_good_candidate_the_fallback_is_given():
    assert_fallback(review(), "no good candidate")
    assert_fallback(review(steerers=[Proposes([BAD])]), "no good candidate")
    assert review(fallback="No.").text == "No."


def test_the_likeliest_wins():
    likelihoods = {
        "one good answer": -2.0,
        "two good answers": -0.5,
        "three good answers": -1.0,
        REFUSAL: -0.1,
    }
    outcome = review(backend=Scoring(likelihoods.get), steerers=[Proposes(list(likelihoods))])
    assert outcome.text == "two good answers"
    assert [c.log_likelihood for c in outcome.record.candidates] == list(likelihoods.values())


def test_a_likelier_text_that_repeats_itself_does_not_win():
    once = "a good answer says what you want to know and then it ends"
    twice = "a good answer says what you want to know, so a good answer says it"
    backend = Scoring({once: -0.7, twice: -0.6}.get)
    assert review(backend=backend, steerers=[Proposes([once, twice])]).text == once


def test_what_was_said_before_is_said_again_only_where_nothing_else_is_good():
    before, new = "a good answer that the model gave earlier", "a good answer that is a new one"
    said = [Message("user", "hi"), Message("assistant", before), Message("user", "hello")]
    likely = Scoring({before: -0.2, new: -0.9}.get)

    def mended(*texts):
        guard = scripted_guard(likely, steerers=[Proposes(list(texts))])
        return asyncio.run(guard.review(said, BAD)).text

    assert mended(before, new) == new
    assert mended(before) == before


def test_the_lowest_score_wins_where_likelihoods_cannot_be_had():
    scores = {"one good answer": 0.2, "two good answers": 0.1, "three good answers": 0.3, BAD: 1.0}
    guide = ScriptedModerator(scores.get)
    assert review(guide=guide, steerers=[Proposes(list(scores))]).text == "two good answers"


@pytest.mark.parametrize(
    ("text", "flaw"),
    [
        pytest.param("Yes.", "short", id="short"),
        pytest.param("we can do it " * 5, "repeats", id="repeats"),
        pytest.param(GOOD + "\ufffd", "broken", id="broken"),
        pytest.param("an unlikely good answer", "unlikely", id="unlikely"),
        pytest.param("a nan good answer", "unlikely", id="nan"),
    ],
)
def test_a_flaw_excludes(text, flaw):
    backend = Scoring(lambda t: -9.0 if "unlikely" in t else float("nan") if "nan" in t else -1.0)
    outcome = review(backend=backend, steerers=[Proposes([text])], profile=ModelProfile(floor=-1.5))
    assert_fallback(outcome, "no good candidate")
    assert outcome.record.candidates[0].flaws == (flaw,)
    json.dumps(outcome.record.as_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("floor", "action"),
    [("auto", "swap"), (-1.5, "fallback"), (None, "swap")],
    ids=["auto-with-slack", "number", "off"],
)
def test_the_floor_comes_from_the_profile_or_the_settings(floor, action):
    quality = {"floor": floor, "slack": 0.5}
    profile = ModelProfile(floor=-1.5)
    outcome = review(
        backend=Scoring(lambda _: -1.9),
        steerers=[Proposes([GOOD])],
        profile=profile,
        quality=quality,
    )
    assert outcome.action == action


def test_the_flagged_answer_itself_is_no_candidate():
    blind = ScriptedModerator(lambda _: 0.0)
    outcome = review(guide=blind, steerers=[Proposes([BAD + " "], [GOOD])])
    assert outcome.text == GOOD
    assert outcome.record.candidates[0].flaws == ("unchanged",)


# ---------------------------------------------------------------------- reasoning


def test_reasoning_is_left_alone_unless_it_counts():
    gate = ScriptedModerator()
    outcome = review(GOOD, gate=gate, reasoning=BAD)
    assert (outcome.text, outcome.record.reasoning_score, gate.calls) == (GOOD, None, [[GOOD]])


@pytest.mark.parametrize("reasoning", ["", " \n", "a good plan"])
def test_a_good_answer_after_good_reasoning_costs_one_gate_call(reasoning):
    gate = ScriptedModerator()
    outcome = review(GOOD, gate=gate, reasoning=reasoning, counts=True)
    assert (outcome.text, outcome.record.moderation_calls) == (GOOD, 1)
    assert gate.calls == [[GOOD, reasoning] if reasoning.strip() else [GOOD]]


def test_a_good_answer_after_flagged_reasoning_is_replaced():
    """Nothing of it is kept, though it was good: no steerer is told of it; the verdict on the
    reasoning counts."""
    other, gate = Proposes([f"another {GOOD}"]), ScriptedModerator()
    outcome = review(GOOD, gate=gate, steerers=[other], reasoning=BAD, counts=True)
    assert (outcome.text, outcome.action) == (f"another {GOOD}", "swap")
    assert (
        outcome.record.gate_score,
        outcome.record.reasoning_score,
        outcome.record.final_score,
    ) == (0.0, 1.0, 0.0)
    assert (other.task.answer, other.task.flag.score) == ("", 1.0)
    assert set(outcome.withheld) == {GOOD, BAD}
    assert gate.calls == [[GOOD, BAD], [f"another {GOOD}"]]


def test_nothing_better_than_flagged_reasoning_is_the_fallback():
    assert_fallback(
        review(GOOD, steerers=[Proposes([BAD])], reasoning=BAD, counts=True), "no good candidate"
    )


def test_a_gate_that_cannot_judge_the_reasoning_fails_closed():
    class Blind(ScriptedModerator):
        async def moderate(self, texts, *, prompts):
            return [Verdict("gate", "pass", 0.0), Verdict.failure("gate", "too long")]

    assert_fallback(
        review(GOOD, gate=Blind(), steerers=[Proposes([GOOD])], reasoning=BAD, counts=True),
        "gate failed: too long",
    )


def test_a_response_without_its_flagged_reasoning():
    async def main():
        guard = scripted_guard(
            [f"<think>{BAD}</think>{GOOD}"],
            steerers=[Proposes([f"another {GOOD}"])],
            reasoning="regenerate",
        )
        return await guard.respond("hello")

    assert asyncio.run(main()).text == f"another {GOOD}"


# ---------------------------------------------------------------------- the cascade


def test_steerers_go_in_order_and_stop_at_the_first_helpful_candidate():
    first, second, third = (
        Proposes([REFUSAL], [BAD]),
        Proposes([GOOD], [GOOD], name="second"),
        Proposes([GOOD]),
    )
    outcome = review(steerers=[first, second, third])
    assert (first.asked, second.asked, third.asked) == (2, 1, 0)
    assert first.closed
    assert second.closed
    assert (outcome.text, outcome.record.steerer) == (GOOD, "second")


def test_a_candidate_that_the_gate_flags_gives_way_to_the_next_one():
    texts = ["one good answer", "two good answers", "two good answers", "three good answers"]
    gate = ScriptedModerator(lambda text: 0.0 if text.startswith("three") else 1.0)
    guide = ScriptedModerator(lambda text: len(text) / 100)
    outcome = review(gate=gate, guide=guide, steerers=[Proposes(texts)])
    assert outcome.text == "three good answers"
    assert gate.calls == [[BAD], ["one good answer"], ["two good answers"], ["three good answers"]]


def test_a_gate_that_flags_every_candidate_is_asked_only_so_often():
    gate = ScriptedModerator(lambda _: 1.0)
    outcome = review(gate=gate, steerers=[Proposes([f"good answer number {i}" for i in range(9)])])
    assert_fallback(outcome, "the gate flagged the candidates")
    assert len(gate.calls) == 4


# ---------------------------------------------------------------------- the budget


@pytest.mark.parametrize(
    "budget", [{"generations": 4}, {"moderation_calls": 2}], ids=["generations", "moderation-calls"]
)
@pytest.mark.parametrize(
    ("found", "text"), [(REFUSAL, REFUSAL), (BAD, FALLBACK)], ids=["best-so-far", "nothing"]
)
def test_a_used_up_budget_ends_the_search(budget, found, text):
    backend, guide = ScriptedBackend(lambda _: found), ScriptedModerator()
    outcome = review(backend=backend, guide=guide, steerers=[resample(n=8, batch=2)], budget=budget)
    assert (outcome.text, outcome.record.reason) == (text, "budget used up")
    assert len(guide.calls) == 2
    assert len(backend.calls) == (2 if "generations" in budget else 3)


def test_the_deadline_on_a_fake_clock():
    clock = FakeClock()

    def slow(_):
        clock.advance(20)
        return REFUSAL

    outcome = review(backend=ScriptedBackend(slow), steerers=[resample(n=8, batch=1)], clock=clock)
    assert (outcome.text, outcome.record.reason, outcome.record.seconds) == (
        REFUSAL,
        "budget used up",
        40,
    )


class Hangs(ScriptedBackend):
    """Answers so many calls, then never again."""

    def __init__(self, answers=()):
        super().__init__(answers)
        self.cancelled = False

    async def generate(self, requests):
        if not self._answers:
            try:
                await asyncio.sleep(60)
            finally:
                self.cancelled = True
        return await super().generate(requests)


@pytest.mark.parametrize(
    ("answers", "text"), [([], FALLBACK), ([REFUSAL], REFUSAL)], ids=["nothing", "best-so-far"]
)
def test_a_real_deadline(answers, text):
    backend = Hangs(answers)
    outcome = review(backend=backend, steerers=[resample(n=8, batch=1)], budget={"seconds": 0.05})
    assert (outcome.text, outcome.record.reason) == (text, "budget used up")
    assert backend.cancelled


# ---------------------------------------------------------------------- faults


class Raises(Proposes):
    def __init__(self, error):
        super().__init__(name="raises")
        self.error = error

    async def steer(self, task):
        raise self.error
        yield


class Yields(Proposes):
    def __init__(self, value):
        super().__init__(name="yields")
        self.value = value

    async def steer(self, task):
        yield self.value


class Endless(Proposes):
    async def steer(self, task):
        while True:
            yield []


class Sleeps(Proposes):
    async def steer(self, task):
        await asyncio.sleep(60)
        yield []


class NotAGenerator(Proposes):
    def steer(self, task):
        return [GOOD]


class Unrendered(ScriptedBackend):
    async def render(self, messages, *, scope="user"):
        raise ModelError(BAD)


class TooFew(Scoring):
    async def log_likelihoods(self, prompt, texts):
        return []


def error():
    return RuntimeError(BAD)  # a message that quotes the text


def fine(_):
    return GOOD


class Panic(BaseException):
    """As a native library raises one."""


FAULTS = {
    "gate raises": {"gate": ScriptedModerator(error=error())},
    "gate panics": {"gate": ScriptedModerator(error=Panic(BAD))},
    "gate cancelled inside": {"gate": ScriptedModerator(error=asyncio.CancelledError())},
    "gate hangs": {"gate": ScriptedModerator(delay=60), "gate_seconds": 0.02},
    "gate gives nothing": {"gate": ScriptedModerator(instead=None)},
    "gate gives an empty list": {"gate": ScriptedModerator(instead=[])},
    "gate gives a bool": {"gate": ScriptedModerator(instead=[True])},
    "gate gives nan": {"gate": ScriptedModerator(lambda _: float("nan"))},
    "guide raises": {"guide": ScriptedModerator(error=error())},
    "guide hangs": {"guide": ScriptedModerator(delay=60), "budget": {"seconds": 0.05}},
    "guide gives garbage": {"guide": ScriptedModerator(instead="pass")},
    "guide gives too many": {
        "guide": ScriptedModerator(instead=[Verdict.scored("g", 0.0, threshold=0.5)] * 9)
    },
    "backend raises": {"backend": ScriptedBackend(fine, error=error())},
    "backend is out of memory": {"backend": ScriptedBackend(fine, error=MemoryError(BAD))},
    "backend panics": {"backend": ScriptedBackend(fine, error=Panic(BAD))},
    "backend cancelled inside": {"backend": ScriptedBackend(fine, error=asyncio.CancelledError())},
    "backend hangs": {"backend": Hangs(), "budget": {"seconds": 0.05}},
    "backend gives none": {"backend": ScriptedBackend(lambda _: None)},
    "backend cannot render": {"backend": Unrendered(fine)},
    "likelihoods are garbage": {
        "backend": Scoring(lambda _: "likely"),
        "steerers": [Proposes([GOOD])],
    },
    "likelihoods are too few": {"backend": TooFew(), "steerers": [Proposes([GOOD])]},
    "steerer raises": {"steerers": [Raises(error())]},
    "steerer panics": {"steerers": [Raises(Panic(BAD))]},
    "steerer cancelled inside": {"steerers": [Raises(asyncio.CancelledError())]},
    "steerer hangs": {"steerers": [Sleeps()], "budget": {"seconds": 0.05}},
    "steerer never ends": {"steerers": [Endless()], "budget": {"seconds": 0.05}},
    "steerer gives none": {"steerers": [Yields(None)]},
    "steerer gives texts": {"steerers": [Yields([GOOD])]},
    "steerer gives candidates of nothing": {"steerers": [Yields([Candidate(None, None, None)])]},
    "steerer is no generator": {"steerers": [NotAGenerator()]},
    "steerer forges a verdict": {
        "steerers": [Yields([Candidate(BAD, "x", Verdict("x", "pass", 0.0))])]
    },
    "conversation is empty": {"messages": []},
    "conversation is garbage": {"messages": [None]},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_ends_in_the_fallback_and_shows_no_text(fault, caplog):
    caplog.set_level(logging.DEBUG)
    parts = {"backend": ScriptedBackend(fine), "steerers": [resample(n=2)]} | FAULTS[fault]
    outcome = review(**parts)
    assert_fallback(outcome)
    assert "SECRET" not in caplog.text + json.dumps(outcome.record.as_dict())
    assert GOOD not in caplog.text + json.dumps(outcome.record.as_dict())


def test_the_next_steerer_goes_on_after_one_that_fails():
    outcome = review(steerers=[Raises(error()), Yields(None), Proposes([GOOD])])
    assert (outcome.text, outcome.action) == (GOOD, "swap")


def test_a_cancelled_review_propagates_and_stops_the_work():
    backend = Hangs()

    async def main():
        task = asyncio.create_task(
            scripted_guard(backend, steerers=[resample()]).review("hello", BAD)
        )
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    assert backend.cancelled


def random_parts(rng):
    """Scripted parts that score at random, and fail at random."""
    texts = [GOOD, BAD, REFUSAL, "", "one two three four", "\ufffd", "bad " * 20]

    def score(_):
        return rng.choice([0.0, 0.2, 0.49, 0.5, 1.0, rng.random(), float("nan"), 2.0, None])

    def moderator():
        broken = rng.choice([{}] * 6 + [{"error": error()}, {"instead": None}, {"instead": [True]}])
        return ScriptedModerator(score, **broken)

    def answer(_):
        return rng.choice([*texts, None]) if rng.random() < 0.9 else 1 / 0

    steerers = [
        resample(n=3, batch=rng.randint(1, 3)),
        Prefill(PrefillOptions(openings=2)),
        Proposes(rng.choices(texts, k=3), rng.choices(texts, k=2)),
        Raises(error()),
        Yields([Candidate(rng.choice(texts), "forged", Verdict("x", "pass", 0.0))]),
    ]
    backend = rng.choice(
        [ScriptedBackend(answer), Scoring(lambda _: rng.choice([-1.0, -2.0, float("nan")]))]
    )
    budget = {"generations": rng.randint(0, 8), "moderation_calls": rng.randint(0, 4)}
    chosen = rng.sample(steerers, rng.randint(0, 3))
    return (
        {"backend": backend, "guide": moderator(), "steerers": chosen, "budget": budget},
        moderator(),
        rng.choice(texts),
    )


class Witness:
    """A gate that remembers its last verdict on every text."""

    name = "witness"

    def __init__(self, inner):
        self.inner, self.passed = inner, {}

    async def moderate(self, texts, *, prompts):
        self.passed.update(dict.fromkeys(texts, False))
        verdicts = await self.inner.moderate(texts, prompts=prompts)
        self.passed.update(
            (t, isinstance(v, Verdict) and not v.flagged)
            for t, v in zip(texts, verdicts, strict=True)
        )
        return verdicts


def test_every_text_that_leaves_was_passed_by_the_gate():
    async def main():
        rng, actions = random.Random(0), set()
        for _ in range(500):
            parts, inner, answer = random_parts(rng)
            gate = Witness(inner)
            outcome = await scripted_guard(gate=gate, **parts).review("hello", answer)
            actions.add(outcome.action)
            if outcome.action == "fallback":
                assert outcome.text == FALLBACK
            else:
                assert gate.passed[outcome.text], "a text left that the gate did not pass last"
                assert outcome.record.final_score < 0.5
        assert actions == {"pass", "swap", "fallback"}

    asyncio.run(main())


# ---------------------------------------------------------------------- record


def test_the_audit_file_holds_no_text_unless_wanted(tmp_path):
    quiet, chatty = tmp_path / "quiet.jsonl", tmp_path / "chatty.jsonl"
    review(steerers=[Proposes([GOOD])], audit={"path": quiet})
    review(steerers=[Proposes([GOOD])], audit={"path": chatty, "texts": True})
    assert BAD not in quiet.read_text()
    assert GOOD not in quiet.read_text()
    assert json.loads(quiet.read_text())["action"] == "swap"
    assert json.loads(chatty.read_text())["texts"] == {"answer": BAD, "final": GOOD}
    assert json.loads(chatty.read_text())["candidates"][0]["text"] == GOOD


@pytest.mark.parametrize("answer", [GOOD, BAD], ids=["pass", "swap"])
def test_an_audit_file_that_cannot_be_written_changes_nothing(tmp_path, caplog, answer):
    outcome = review(answer, steerers=[Proposes([GOOD])], audit={"path": tmp_path})
    assert outcome.text == GOOD
    assert "audit record could not be written" in caplog.text


def test_the_same_seed_gives_the_same_record():
    def record(seed):
        backend = ScriptedBackend(lambda request: f"Sorry, number {request.seed} is no answer")
        outcome = review(
            backend=backend,
            steerers=[resample(n=3)],
            seed=seed,
            audit={"texts": True},
            clock=FakeClock(),
        )
        return replace(outcome.record, id="", created=0.0)

    assert record(1) == record(1)
    assert record(1) != record(2)


# ---------------------------------------------------------------------- construction, and answering
# by itself


class Needs(Proposes):
    needs = (ScoresText,)


def test_a_steerer_must_get_the_capabilities_that_it_needs():
    with pytest.raises(
        ConfigError, match=r"steerer 'needy' needs a backend that .*ScoresText.*'scripted'"
    ) as caught:
        scripted_guard([], steerers=[Needs(name="needy")])
    assert "resample" in caught.value.hint
    scripted_guard(Scoring(), steerers=[Needs(name="needy")])


def test_respond_answers_and_reviews():
    backend = ScriptedBackend([BAD, GOOD])
    guard = scripted_guard(
        backend, steerers=[resample(n=1)], generation={"max_new_tokens": 7}, seed=3
    )
    outcome = asyncio.run(guard.respond([Message("user", "hello")]))
    assert (outcome.text, outcome.action) == (GOOD, "swap")
    assert [r.max_new_tokens for [r] in backend.calls] == [7, 7]


def test_the_seed_belongs_to_the_conversation_and_is_the_same_every_time():
    def seed(question: str, setting: int) -> int:
        backend = ScriptedBackend([GOOD])
        asyncio.run(scripted_guard(backend, seed=setting).respond(question))
        return backend.calls[0][0].seed

    assert seed("hello", 3) == seed("hello", 3)
    assert len({seed("hello", 3), seed("hello", 4), seed("good morning", 3)}) == 3


def test_respond_says_what_is_wrong_with_the_conversation():
    with pytest.raises(PromptError):
        asyncio.run(scripted_guard(["hello"]).respond(""))


def test_moderators_get_the_last_thing_that_the_user_said():
    class Curious(ScriptedModerator):
        async def moderate(self, texts, *, prompts):
            self.prompts = prompts
            return await super().moderate(texts, prompts=prompts)

    gate, guide = Curious(), Curious()
    turns = [Message("user", "first"), Message("assistant", "yes"), Message("user", "second")]
    review(messages=turns, gate=gate, guide=guide, steerers=[Proposes([BAD, GOOD])])
    assert gate.prompts == ["second"]
    assert guide.prompts == ["second", "second"]


def test_closing_the_guard_closes_the_backend():
    guard = scripted_guard([], plugins=Plugins())
    asyncio.run(guard.close())
    assert guard.backend.closed


# ---------------------------------------------------------------- answers of which a part has been
# shown


def reviewed_after(shown, answer, backend, **parts):
    """The outcome for `answer`, of which the gate let `shown` out while it grew."""

    async def main():
        guard = scripted_guard(backend, **{"steerers": [resample(n=4, batch=1)], **parts})
        stream_gate = guard.stream_gate("hello")

        async def grow():
            yield f"{shown} "

        pieces = [piece async for piece in stream_gate.stream(grow())]
        assert pieces == [shown]
        return await guard.review("hello", answer, stream_gate=stream_gate)

    return asyncio.run(main())


def test_what_was_shown_stays_and_another_continuation_is_found():
    backend = ScriptedBackend(
        lambda _: " and a bad end" if len(backend.calls) < 3 else " and a good end"
    )
    outcome = reviewed_after("A fine start.", f"A fine start. {BAD}", backend)
    assert (outcome.action, outcome.text) == ("swap", "A fine start. and a good end")
    assert {r.opening for [r] in backend.calls} == {"A fine start."}
    # the beginning, the answer, three candidates, the winner
    assert outcome.record.moderation_calls == 1 + 1 + 3 + 1


def test_a_candidate_that_takes_back_what_was_shown_is_not_chosen():
    texts = ["Something else that is good", "A fine start. Then more of it"]
    outcome = reviewed_after(
        "A fine start.", f"A fine start. {BAD}", ScriptedBackend([]), steerers=[Proposes(texts)]
    )
    assert outcome.text == texts[1]
    assert [c.flaws for c in outcome.record.candidates] == [("takes back",), ()]


def test_the_fallback_comes_after_what_was_shown():
    outcome = reviewed_after(
        "A fine start.", f"A fine start. {BAD}", ScriptedBackend([]), steerers=[]
    )
    assert (outcome.action, outcome.text) == ("fallback", f"A fine start.\n\n{FALLBACK}")


def test_an_answer_that_does_not_begin_with_what_was_shown_is_reviewed_alone():
    outcome = reviewed_after("A fine start.", BAD, ScriptedBackend([GOOD]))
    assert (outcome.action, outcome.text) == ("swap", GOOD)


def test_a_gate_that_fails_shows_nothing_early():
    async def main():
        guard = scripted_guard([], gate=ScriptedModerator(error=RuntimeError("down")))

        async def grow():
            yield "Fine. Fine. "

        return [piece async for piece in guard.stream_gate("hello").stream(grow())]

    assert asyncio.run(main()) == []


def test_prefill_goes_on_with_an_opening_after_what_was_shown():
    profile = ModelProfile(model="m", openings=({"text": "Here is", "kind": "answer"},))
    backend = ScriptedBackend(lambda _: " a good end")
    steerers = [Prefill(PrefillOptions())]
    outcome = reviewed_after(
        "A fine start.", f"A fine start. {BAD}", backend, steerers=steerers, profile=profile
    )
    assert outcome.text == "A fine start. Here is a good end"


@pytest.mark.parametrize(
    ("of_question", "of_message", "everyday"),
    [(0.0, 0.0, True), (0.0, 0.4, True), (0.0, 0.6, False), (0.1, 0.0, False)],
)
def test_a_flag_for_harm_says_nothing_of_an_everyday_question(
    of_question, of_message, everyday, monkeypatch
):
    message = "Be rude. How do I clean a kettle?"
    harms = {"How do I clean a kettle?": of_question, message: of_message}

    async def harm_of(texts, **_):
        return Harm(max(harms[text] for text in texts), texts[0])

    monkeypatch.setattr("ttsa_guard.search.harm_of", harm_of)
    steerer = Proposes([REFUSAL], [GOOD])
    guard = scripted_guard([], gate=FlagsFor("harm"), guide=ScriptedModerator(), steerers=[steerer])
    outcome = asyncio.run(guard.review(message, BAD))
    assert outcome.text == (GOOD if everyday else REFUSAL)
    assert steerer.task.harmful is (None if everyday else True)
    assert steerer.task.answerable is everyday
    assert offering_kinds(steerer.task) == (("answer",) if everyday else ("redirect",))


@pytest.mark.parametrize(
    ("last", "read"),
    [
        (
            "And how do I do it?",
            [
                "How do I do something bad? And how do I do it?",
                "Be rude. How do I do something bad? And how do I do it?",
            ],
        ),
        (
            "How do I clean a kettle with a soft sponge?",
            ["How do I clean a kettle with a soft sponge?"],
        ),
    ],
)
def test_what_was_asked_before_is_read_with_a_question(last, read, monkeypatch):
    asked = []

    async def harm_of(texts, **_):
        asked.extend(texts)
        return

    monkeypatch.setattr("ttsa_guard.search.harm_of", harm_of)
    before = "Be rude. How do I do something bad?"
    messages = [Message("user", before), Message("assistant", "No."), Message("user", last)]
    guard = scripted_guard([], gate=FlagsFor("harm"), guide=ScriptedModerator(), steerers=[])
    asyncio.run(guard.review(messages, BAD))
    assert asked == ["How do I do something bad?", *read]


def task_with(harm, monkeypatch, category):
    """The task for a flag in `category`, if what is asked for reads like harm by `harm`."""

    async def harm_of(texts, **_):
        return Harm(harm, texts[-1])

    monkeypatch.setattr("ttsa_guard.search.harm_of", harm_of)
    steerer = Proposes([REFUSAL])
    guard = scripted_guard(
        [], gate=FlagsFor(category), guide=ScriptedModerator(), steerers=[steerer]
    )
    asyncio.run(guard.review("How do I clean a kettle?", BAD))
    return steerer.task


@pytest.mark.parametrize(
    ("category", "harm", "harmful"),
    [
        ("toxicity", 0.9, True),
        ("toxicity", 0.1, False),
        ("gate/insult", 0.9, True),
        ("policy", 0.9, False),
        ("harm", 0.1, True),
    ],
)
def test_what_was_asked_for_counts_beside_the_tone(category, harm, harmful, monkeypatch):
    assert task_with(harm, monkeypatch, category).harmful is harmful


def test_a_model_that_redirects_by_itself_does_so_whatever_the_question(monkeypatch):
    async def harm_of(*_, **__):
        raise AssertionError("asked")

    monkeypatch.setattr("ttsa_guard.search.harm_of", harm_of)
    steerer = Proposes([REFUSAL])
    own = ModelProfile.model_validate(
        {"openings": [{"text": "I would rather", "kind": "redirect"}]}
    )
    guard = scripted_guard([], gate=FlagsFor("harm"), steerers=[steerer], profile=own)
    asyncio.run(guard.review("How do I clean a kettle?", BAD))
    assert steerer.task.harmful is True


@pytest.mark.parametrize(("category", "rounds"), [("harm", 1), ("toxicity", 2), (None, 2)])
def test_declining_ends_the_search_only_where_it_is_right(category, rounds):
    gate = FlagsFor(category) if category else ScriptedModerator()
    steerer = Proposes([REFUSAL], [GOOD])
    outcome = review(gate=gate, steerers=[steerer])
    assert steerer.asked == rounds
    assert outcome.text == (REFUSAL if rounds == 1 else GOOD)


def test_the_better_opening_wins_where_it_will_do_though_a_worse_one_is_likelier():
    openings = [{"text": "A better", "kind": "answer"}, {"text": "Another", "kind": "answer"}]
    profile = ModelProfile(model="m", openings=openings)
    backend = Scoring(
        lambda text: -1.0 if text.startswith("Another") else -2.0, lambda _: " way to put it"
    )
    outcome = review(backend=backend, steerers=[Prefill(PrefillOptions(draws=1))], profile=profile)
    assert outcome.text == "A better way to put it"
