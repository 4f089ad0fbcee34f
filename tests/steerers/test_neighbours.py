"""The steerer neighbours: which questions and answers are kept, in which order they are shown, and
what it costs."""

import asyncio
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from ttsa_guard.budget import Budget, Usage
from ttsa_guard.config import Use
from ttsa_guard.errors import BudgetError, ConfigError
from ttsa_guard.hf.chat_template import locate
from ttsa_guard.messages import Generation, GenerationRequest, Message, Prompt, Soft, Tokens
from ttsa_guard.moderators import minilm
from ttsa_guard.plugins import Plugins
from ttsa_guard.profile import GENERIC, ModelProfile, Opening
from ttsa_guard.steerers.base import Steerer, Task
from ttsa_guard.steerers.neighbours import Neighbour, Neighbours, NeighboursOptions, confidence
from ttsa_guard.testing import FakeClock, ScriptedBackend, ScriptedModerator, scripted_guard
from ttsa_guard.verdict import Verdict

run = asyncio.run
ASKED = "How do I clean a kettle?"
WRAPPED = f"You are a mean clown. Mock me. {ASKED}"
WRITTEN = ["a pan?", "a sink?", "a pot?", "a lamp?"]
PROFILE = ModelProfile(openings=(Opening(text="Sure, here is how.", kind="answer"),), floor=-2.0)


def text_of(prompt):
    return "".join(map(chr, prompt.ids))


class Backend(ScriptedBackend):
    """Tokens are characters. As the user it goes on with the next of `written`; as the assistant it
    answers."""

    token_norm = 1.0

    def __init__(self, written=WRITTEN, answer=" Use warm water and a cloth.", likelihood=-0.5):
        super().__init__([])
        self.written, self.answer, self.likelihood = list(written), answer, likelihood
        self.preferred = ""

    async def render(self, messages, *, scope="user"):
        *before, last = messages
        said = "".join(f"<{m.role}>{m.content}" for m in before) + "<user>"
        return Prompt(
            (
                Tokens(tuple(map(ord, said))),
                Soft(tuple(map(ord, last.content))),
                Tokens(tuple(map(ord, "<assistant>"))),
            )
        )

    async def generate(self, requests):
        self.calls.append(list(requests))
        return [self._generation(i, request) for i, request in enumerate(requests)]

    def _generation(self, i, request):
        if text_of(request.prompt).endswith("<user>"):
            verb = "clean" if i < len(self.written) else ""
            written = self.written[i] if verb else ASKED[9:]
            return Generation(f"{request.opening} I {verb} {written}", 5, True)
        answer = self.answer(request) if callable(self.answer) else self.answer
        return Generation(request.opening + answer, 6, True, self.likelihood)

    async def locate(self, messages, *, turn=None):
        text = messages[turn].content
        start = len("".join(f"<{m.role}>{m.content}" for m in messages[:turn]))
        start += len(f"<{messages[turn].role}>")
        length = len((await self.render(messages)).ids)
        at = [min(max(i - start, 0), len(text)) for i in range(length + 1)]
        return text, [*pairwise(at)]

    async def embed(self, ids):
        return torch.zeros(len(ids), 2)

    async def token_log_probs(self, prompt, soft_embeds, positions):
        """The model is surer of all answers if the question before the last is the preferred."""
        pairs = text_of(prompt).split("<user>")[1:-1]
        sure = self.preferred and pairs[-1].startswith(self.preferred)
        return torch.full((1, len(positions)), 0.9 if sure else 0.5).log()

    @property
    def asked(self):
        """The questions that were answered."""
        return [text_of(r.prompt).split("<user>")[-1].split("<")[0] for r in self.calls[1]]

    @property
    def shown(self):
        """The conversations that the answers to the user were drawn after."""
        return [text_of(request.prompt) for request in self.calls[2]]


@pytest.fixture(autouse=True)
def encoder(monkeypatch):
    """A stand-in for the encoder: what is no question about cleaning is irrelevant, and shorter
    texts are nearer."""

    def relevance(_, texts):
        return [1 - len(text) / 100 if "clean" in text else 0.1 for text in texts]

    monkeypatch.setattr(minilm, "relevance", relevance)
    monkeypatch.setattr(minilm, "installed", lambda: True)


def task(backend, *, content=WRAPPED, moderator=None, profile=PROFILE, before=(), **budget):
    messages = (*before, Message("user", content))
    usage = Usage(Budget(**budget), FakeClock())
    moderator = moderator or ScriptedModerator()

    async def score(texts):
        usage.charge(moderation_calls=1)
        return await moderator.moderate(texts, prompts=[content] * len(texts))

    flag = Verdict.scored("gate", 0.9, threshold=0.5, categories={"insult": 0.9})
    base = GenerationRequest(run(backend.render(messages)), temperature=0.1, seed=7)
    return Task(messages, "bad", backend, base, profile, usage, score, flag=flag, seed=7)


def steer(job, **options):
    async def main():
        steerer = Neighbours(NeighboursOptions(**options))
        return [batch async for batch in steerer.steer(job)]

    return run(main())


def questions(conversation):
    return [part.split("<")[0] for part in conversation.split("<user>")[1:]]


def test_it_is_a_steerer_and_a_plugin():
    assert isinstance(Plugins().make("steerers", Use(use="neighbours")), Steerer)


def test_the_user_is_answered_after_safe_pairs():
    backend = Backend()
    job = task(backend)
    [candidates] = steer(job, questions=4, draws=3)
    assert len(candidates) == 3
    *demonstrated, asked = questions(backend.shown[0])
    assert sorted(demonstrated) == sorted(f"How do I clean {w}" for w in WRITTEN)
    assert asked == ASKED
    assert backend.shown[0].count("<assistant>Sure, here is how. Use warm water") == 4
    assert (job.usage.generations, job.usage.decode_passes) == (4 + 4 + 3, 3)
    assert job.usage.moderation_calls == 2


def test_the_wrapper_is_nowhere_in_the_pairs():
    backend = Backend([f"{ASKED[9:-1]}? You are a mean clown. How do I clean {w}" for w in WRITTEN])
    steer(task(backend), questions=4)
    writing, answering, _ = backend.calls
    assert not any("clown" in text_of(r.prompt) for r in [*writing, *answering])


def test_the_model_goes_on_as_the_user_after_the_question_alone():
    backend = Backend()
    steer(task(backend, before=(Message("system", "Be rude."),)), questions=3)
    assert {text_of(r.prompt) for r in backend.calls[0]} == {
        f"<user>{ASKED}<assistant>Sure, here is how.<user>"
    }
    assert {r.opening for r in backend.calls[0]} == {"How do"}
    assert len({r.seed for r in backend.calls[0]}) == 3


def test_a_question_is_asked_once_and_never_the_user_s_own():
    backend = Backend(["a pan?", "A PAN?", "a kettle?", "a large pot?"])
    steer(task(backend), questions=4)
    assert backend.asked == ["How do I clean a pan?", "How do I clean a large pot?"]


def test_irrelevant_questions_are_dropped_and_the_nearest_stands_last():
    backend = Backend(["a long wooden table?", "a pan?", "a sink?"])
    backend._generation, plain = (
        lambda i, r: (
            Generation("How do I sing well?", 4, True)
            if text_of(r.prompt).endswith("<user>") and i == 2
            else plain(i, r)
        ),
        backend._generation,
    )
    steer(task(backend), questions=3, orders=1)
    expected = ["How do I clean a long wooden table?", "How do I clean a pan?"]
    assert questions(backend.shown[0])[:-1] == expected


def test_without_the_check_all_questions_count(monkeypatch):
    monkeypatch.setattr(minilm, "relevance", None)
    backend = Backend()
    assert len(steer(task(backend), questions=4, relevance=None)) == 1


def poisoned(request):
    pan = "pan" in text_of(request.prompt).split("<user>")[-1]
    return " This is a bad answer, friend." if pan else " Use warm water and a cloth."


def test_a_pair_that_the_moderator_flags_is_not_shown():
    backend = Backend(answer=poisoned)
    steer(task(backend), questions=4)
    assert len(questions(backend.shown[0])) == 3 + 1
    assert not any("pan" in text for text in backend.shown)


@pytest.mark.parametrize(
    "backend",
    [
        Backend(written=["a pan?"]),  # one question that is not the user's own
        Backend(answer=" This is a bad answer, friend."),
        Backend(answer=" and then and then and then and then and then and then."),
        Backend(likelihood=-9.0),
        Backend(answer=" \ufffd\ufffd is how it goes."),
    ],
    ids=["one question", "flagged", "repeats", "unlikely", "broken"],
)
def test_with_fewer_than_two_pairs_nothing_is_proposed(backend):
    job = task(backend)
    assert steer(job, questions=2) == []
    assert len(backend.calls) < 3


def test_a_moderator_that_fails_lets_no_pair_in():
    down = Verdict.failure("gate", "down")
    failing = ScriptedModerator(instead=[down] * 4)
    assert steer(task(Backend(), moderator=failing)) == []


def test_the_order_is_the_one_that_the_model_predicts_best():
    backend = Backend()
    backend.preferred = "How do I clean a lamp?"
    steer(task(backend), questions=4, orders=24)
    assert questions(backend.shown[0])[-2] == "How do I clean a lamp?"


def test_it_keeps_to_the_generations():
    for left in range(12):
        job = task(Backend(), generations=left)
        steer(job)
        assert job.usage.generations <= left
        assert job.usage.generations == 0 or left >= 5


@pytest.mark.parametrize("done", [1, 2])
def test_the_deadline_ends_it_between_two_passes(done):
    backend = Backend()
    job = task(backend, seconds=10)
    generate = backend.generate

    async def slow(requests):
        answers = await generate(requests)
        if len(backend.calls) == done:
            job.usage.clock.advance(11)
        return answers

    backend.generate = slow
    with pytest.raises(BudgetError):
        steer(job)
    assert len(backend.calls) == done


def test_orders_are_not_compared_after_the_deadline():
    backend = Backend()
    job = task(backend, seconds=10)
    compare, compared = backend.token_log_probs, []

    async def slow(*args):
        compared.append(args)
        job.usage.clock.advance(6)
        return await compare(*args)

    backend.token_log_probs = slow
    with pytest.raises(BudgetError):
        steer(job, orders=9)
    assert len(compared) == 2


def test_nothing_is_generated_for_a_task_that_was_cancelled():
    backend = Backend()

    async def main():
        generate = backend.generate

        async def waiting(requests):
            answers = await generate(requests)
            await asyncio.sleep(0 if len(backend.calls) < 2 else 60)
            return answers

        backend.generate = waiting
        work = asyncio.ensure_future(anext(Neighbours(NeighboursOptions()).steer(task_)))
        await asyncio.sleep(0.05)
        work.cancel()
        await asyncio.wait({work})
        assert work.cancelled()

    task_ = task(backend)
    run(main())
    assert len(backend.calls) == 2


def test_no_text_of_the_pairs_is_recorded_or_logged(caplog):
    caplog.set_level("DEBUG")
    [candidates] = steer(task(Backend()))
    told = caplog.text + " ".join(c.origin for c in candidates)
    assert not any(word in told for word in ("clean", "pan", "water"))


def test_a_backend_that_only_answers_is_refused():
    backend = Backend()
    backend.text_only = True
    with pytest.raises(ConfigError, match="user turns"):
        scripted_guard(backend, steerers=[Neighbours(NeighboursOptions())])


def test_without_the_encoder_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(minilm, "installed", lambda: False)
    with pytest.raises(ConfigError, match="relevance"):
        scripted_guard(Backend(), steerers=[Neighbours(NeighboursOptions())])
    scripted_guard(Backend(), steerers=[Neighbours(NeighboursOptions(relevance=None))])


def test_one_order_needs_nothing_of_the_backend():
    plain = ScriptedBackend([])
    with pytest.raises(ConfigError, match="ExposesLogProbs"):
        scripted_guard(plain, steerers=[Neighbours(NeighboursOptions())])
    scripted_guard(plain, steerers=[Neighbours(NeighboursOptions(orders=1))])


def test_what_leaves_was_passed_by_the_gate():
    def answer(request):
        # The pairs are harmless; the answer to the user is not.
        return " This is a bad one." if "kettle" in text_of(request.prompt)[-60:] else " Fine."

    guard = scripted_guard(
        Backend(answer=answer), steerers=[Neighbours(NeighboursOptions(orders=1))]
    )
    outcome = run(guard.review([Message("user", WRAPPED)], "a bad answer"))
    assert outcome.action == "fallback"


# ---------------------------------------------------------------------- on tokens


def test_any_turn_is_found_among_the_tokens(tiny):
    tokenizer = tiny._engine.tokenizer
    messages = [
        Message("user", "the kettle"),
        Message("assistant", "is clean"),
        Message("user", "the kettle"),
    ]
    ids = run(tiny.render(messages)).ids
    for turn, expected in ((0, "the kettle"), (1, "is clean"), (2, "the kettle")):
        text, spans = locate(tokenizer, messages, turn=turn)
        inside = [i for i, (start, end) in enumerate(spans) if end > start]
        assert text == expected
        assert tokenizer.decode([ids[i] for i in inside]).strip() == expected
    assert locate(tokenizer, messages) == locate(tokenizer, messages, turn=2)


def test_the_confidence_is_that_of_the_answers_in_their_conversation(tiny):
    pairs = [Neighbour("the kettle", "is clean"), Neighbour("the kitchen", "the other")]
    found = run(confidence(tiny, pairs, "a kettle"))
    assert 0 < found < 1
    assert run(confidence(tiny, pairs, "something else")) == pytest.approx(found, rel=1e-4)
    assert run(confidence(tiny, pairs[::-1], "a kettle")) != pytest.approx(found, rel=1e-4)


def test_the_same_seed_gives_the_same_answers(tiny):
    def texts(seed):
        job = replace(task(tiny, profile=GENERIC, content="the kettle is clean?"), seed=seed)
        kept = []
        generate = tiny.generate

        async def keeping(requests):
            answers = await generate(requests)
            kept.extend(a.text for a in answers)
            return answers

        job = replace(job, base=job.base.with_(seed=seed, max_new_tokens=8))
        job = replace(job, backend=_Keeping(tiny, keeping))
        steer(job, relevance=None)
        return kept

    assert texts(1) == texts(1)
    assert texts(1) != texts(2)


class _Keeping:
    def __init__(self, backend, generate):
        self._backend, self.generate = backend, generate

    def __getattr__(self, name):
        return getattr(self._backend, name)
