"""Moderation services under many callers, in several threads and event loops, and with clients that
must keep a key."""

import asyncio
import gc
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
from aiohttp import web

from ttsa_guard.moderators.azure import Azure, AzureOptions
from ttsa_guard.moderators.openai import OpenAI, OpenAIOptions
from ttsa_guard.service import Http

from . import services
from .services import KEY, Service, running, status


@pytest.fixture(autouse=True)
def keys(monkeypatch):
    for name in ("OPENAI_API_KEY", "AZURE_CONTENT_SAFETY_KEY"):
        monkeypatch.setenv(name, KEY)


@pytest.fixture
def elsewhere():
    """Runs a service on an event loop of its own, in a thread, until the test ends."""
    ended, threads = threading.Event(), []

    def start(service):
        ready = threading.Event()

        async def serve():
            async with running(service):
                ready.set()
                await asyncio.to_thread(ended.wait)

        threads.append(threading.Thread(target=lambda: asyncio.run(serve())))
        threads[-1].start()
        assert ready.wait(10)
        return service

    yield start
    ended.set()
    for thread in threads:
        thread.join(10)


def after(seconds, answer):
    async def late(request):
        body = await request.json()
        await asyncio.sleep(seconds)
        return web.json_response(answer(body))

    return lambda *_: late


def texts_of(caller, n):
    return [f"{'bad' if (caller + i) % 7 == 0 else 'fine'} {caller} {i}" for i in range(n)]


def judged(service, callers, n, **options):
    """What the service's moderator says to so many callers of `n` texts each, all at once."""

    async def main():
        async with running(service):
            http = Http(
                connections=options.pop("connections", 100),
                timeout=options["timeout"],
                tries=options["tries"],
            )
            moderator = Azure(AzureOptions(endpoint=service.url, **options), http=http)
            asked = [texts_of(caller, n) for caller in range(callers)]
            found = await asyncio.gather(
                *(moderator.moderate(texts, prompts=[""] * n) for texts in asked)
            )
            await moderator.close()
            return [[v.decision for v in verdicts] for verdicts in found]

    return asyncio.run(main())


def expected(callers, n):
    return [
        ["flag" if "bad" in text else "pass" for text in texts_of(caller, n)]
        for caller in range(callers)
    ]


def test_the_wait_for_a_connection_is_not_the_services_time():
    """Four times as many calls as fit into the time limit of one."""
    service = Service(services.azure, after(0.2, services.azure))
    assert judged(service, 20, 8, connections=8, timeout=1.0, tries=1) == expected(20, 8)
    assert len(service.asked) == 160


@pytest.mark.slow
def test_two_hundred_callers_of_fifty_texts_lose_none():
    service = Service(services.azure, after(0.2, services.azure))
    started = time.monotonic()
    found = judged(service, 200, 50, timeout=5, tries=3)
    print(f"10,000 texts in {time.monotonic() - started:.1f} s, {len(service.asked)} requests")
    assert found == expected(200, 50)
    assert len(service.asked) == 10_000


def test_calls_that_wait_are_refused_once_the_service_rests():
    service = Service(services.azure, lambda *_: status(500)())
    [decisions] = judged(service, 1, 60, connections=2, timeout=1, tries=1)
    assert decisions == ["failed"] * 60
    assert len(service.asked) <= 6  # five in a row, and one that was on its way


def test_threads_with_event_loops_of_their_own_share_a_moderator(elsewhere):
    service = elsewhere(Service(services.openai, after(0.01, services.openai)))
    moderator = OpenAI(OpenAIOptions(base_url=service.url, batch=4, timeout=5, cache=16))

    def caller(thread):
        async def main():
            return [
                [
                    v.decision
                    for v in await moderator.moderate(texts_of(thread % 2, 8), prompts=[""] * 8)
                ]
                for _ in range(5)
            ]

        return asyncio.run(main())

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(caller, range(4)))
    assert found == [[decisions] * 5 for decisions in [*expected(2, 8), *expected(2, 8)]]


def test_connections_are_closed_with_their_event_loop(elsewhere):
    service = elsewhere(Service(services.openai))
    moderator = OpenAI(OpenAIOptions(base_url=service.url, cache=0))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(2):
            [verdict] = asyncio.run(moderator.moderate(["a bad one"], prompts=[""]))
            assert verdict.decision == "flag"
        del moderator
        gc.collect()
    assert [str(w.message) for w in seen if "nclosed" in str(w.message)] == []


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_the_key_does_not_follow_a_redirect(elsewhere, code):
    thief = elsewhere(Service(services.openai))
    service = elsewhere(
        Service(services.openai, lambda *_: status(code, Location=f"{thief.url}/v1/moderations")())
    )
    moderator = OpenAI(OpenAIOptions(base_url=service.url, tries=1))
    [verdict] = asyncio.run(moderator.moderate(["a bad one"], prompts=[""]))
    assert (verdict.decision, service.authorised, thief.asked) == ("failed", [True], [])


LEVELS = dict.fromkeys(("Hate", "SelfHarm", "Sexual", "Violence"), 0)


@pytest.mark.parametrize(
    "levels",
    [
        {**LEVELS, "Hate": None},
        {**LEVELS, "Hate": True},
        {"Hate": 0, "SelfHarm": 0, "Sexual": 0},
        {**LEVELS, "Violence": 8},
        {},
    ],
    ids=["null", "true", "missing", "too severe", "none"],
)
def test_no_severity_may_be_missing_or_odd(levels):
    found = [{"category": name, "severity": level} for name, level in levels.items()]
    service = Service(lambda _: {"categoriesAnalysis": found})
    assert judged(service, 1, 1, timeout=1, tries=1) == [["failed"]]
