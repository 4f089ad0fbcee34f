"""Requests of different conversations meet in one batch, and see nothing of one another."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ttsa_guard.backends.base import Continuation
from ttsa_guard.backends.local.batching import Batcher
from ttsa_guard.backends.transformers import TransformersBackend, TransformersOptions
from ttsa_guard.errors import ModelError
from ttsa_guard.messages import GenerationRequest, Message

run = asyncio.run


@pytest.fixture
def backend(tiny_model):
    return TransformersBackend(
        TransformersOptions(model=str(tiny_model), device="cpu", dtype="float32", batch_size=64)
    )


@pytest.fixture
def asked(backend):
    """Requests of six conversations."""
    contents = [
        "the kettle",
        "a much longer question about the kettle and the owl",
        "owls",
        "tea",
        "a",
        "why is that so",
    ]
    prompts = [run(backend.render([Message("user", content)])) for content in contents]
    return [
        [GenerationRequest(p, temperature=t, seed=i, max_new_tokens=12) for t in (0, 0.9)]
        for i, p in enumerate(prompts)
    ]


@pytest.fixture
def batches(backend, monkeypatch):
    """The sizes of the batches that the model decodes."""
    sizes, decode = [], backend._loaded.generation_batcher._work

    def counting(requests, stops):
        sizes.append(len(requests))
        return decode(requests, stops)

    monkeypatch.setattr(backend._loaded.generation_batcher, "_work", counting)
    return sizes


async def while_busy(backend, jobs, *, given_up=()):
    """The results of jobs that are asked for while the model is at work on something else."""
    done = threading.Event()
    backend._loaded.worker.submit(done.wait, 10)
    tasks = [asyncio.ensure_future(backend.generate(job)) for job in jobs]
    await asyncio.sleep(0)
    for i in given_up:
        tasks[i].cancel()
    await asyncio.sleep(0)
    done.set()
    return await asyncio.gather(*tasks, return_exceptions=True)


def test_who_asks_while_the_model_works_is_answered_in_one_batch(backend, asked, batches):
    alone = [run(backend.generate(job)) for job in asked]
    batches.clear()
    assert run(while_busy(backend, asked)) == alone
    assert batches == [12]


def test_who_asks_in_the_same_moment_is_answered_in_one_batch(backend, asked, batches):
    async def at_once():
        return await asyncio.gather(*(backend.generate(job) for job in asked))

    together = run(at_once())
    assert batches == [12]
    assert together == [run(backend.generate(job)) for job in asked]


def test_texts_of_all_lengths_are_scored_as_if_alone(backend, asked):
    prompt = asked[0][0].prompt
    texts = [("the kettle and the owl " * (1 + 7 * i % 41)).strip() for i in range(60)]
    together = run(backend.log_likelihoods(prompt, texts))
    assert together == pytest.approx(
        [run(backend.log_likelihoods(prompt, [text]))[0] for text in texts], rel=1e-4
    )


def test_no_kind_of_work_is_overtaken_by_what_comes_later():
    worker, done, gates = ThreadPoolExecutor(1), [], [threading.Event() for _ in range(2)]
    started = [threading.Event() for _ in gates]

    def work(kind):
        def run(items, _):
            done.append((kind, *items))
            if kind == "answers" and len(done) <= len(gates):
                started[len(done) - 1].set()
                gates[len(done) - 1].wait(10)
            return items

        return run

    answers, scores = Batcher(work("answers"), worker), Batcher(work("scores"), worker)

    async def traffic():
        tasks = [asyncio.ensure_future(answers([1]))]
        await asyncio.to_thread(started[0].wait, 10)
        tasks += [
            asyncio.ensure_future(batcher([i]))
            for batcher, i in ((answers, 2), (answers, 3), (scores, 4))
        ]
        await asyncio.sleep(0)
        gates[0].set()
        await asyncio.to_thread(started[1].wait, 10)
        tasks.append(asyncio.ensure_future(answers([5])))
        await asyncio.sleep(0)
        gates[1].set()
        return await asyncio.gather(*tasks)

    assert run(traffic()) == [[1], [2], [3], [4], [5]]
    assert done == [("answers", 1), ("answers", 2, 3), ("scores", 4), ("answers", 5)]


def test_the_fault_of_one_is_not_everybodys(backend, asked):
    wrong = [asked[2][0].with_(soft_embeds=run(backend.embed([1, 2, 3]))[:, :5])]
    found = run(while_busy(backend, [*asked[:3], wrong, *asked[3:]]))
    assert isinstance(found.pop(3), ModelError)
    assert found == [run(backend.generate(job)) for job in asked]


def test_a_caller_that_gives_up_does_not_end_the_others(backend, asked, batches):
    found = run(while_busy(backend, asked, given_up=[3]))
    assert batches == [10]
    assert isinstance(found.pop(3), asyncio.CancelledError)
    assert found == [run(backend.generate(job)) for i, job in enumerate(asked) if i != 3]


def test_scores_and_gradients_meet_too(backend, asked):
    prompts = [job[0].prompt for job in asked]
    continuations = [Continuation((("an owl", 1.0),)), Continuation((("tea", 1.0), ("no", -1.0)))]
    embeds = [run(backend.embed(p.soft_ids)) for p in prompts]

    async def gather():
        scores = asyncio.gather(
            *(backend.log_likelihoods(p, ["an owl", "tea is nice"]) for p in prompts)
        )
        slopes = asyncio.gather(
            *(
                backend.gradient(p, [r, r], continuations)
                for p, r in zip(prompts, embeds, strict=True)
            )
        )
        return await scores, await slopes

    scores, slopes = run(gather())
    for prompt, r, score, (values, gradients) in zip(prompts, embeds, scores, slopes, strict=True):
        assert run(backend.log_likelihoods(prompt, ["an owl", "tea is nice"])) == pytest.approx(
            score, abs=1e-5
        )
        alone = run(backend.gradient(prompt, [r, r], continuations))
        assert values.tolist() == pytest.approx(alone[0].tolist(), abs=1e-5)
        assert float((gradients - alone[1]).abs().max()) < 1e-5
