import asyncio
import gzip
import json
import logging
import threading
import time
import tracemalloc
from contextlib import suppress
from datetime import date

import pytest
from aiohttp import web

from ttsa_guard.config import GuardConfig
from ttsa_guard.errors import ConfigError
from ttsa_guard.guard import Guard
from ttsa_guard.moderators.azure import Azure, AzureOptions
from ttsa_guard.moderators.mistral import Mistral, MistralOptions
from ttsa_guard.moderators.openai import OpenAI, OpenAIOptions
from ttsa_guard.moderators.perspective import Perspective, PerspectiveOptions
from ttsa_guard.service import Http
from ttsa_guard.testing import ScriptedBackend, check_moderator, scripted_guard

from . import services
from .services import KEY, Service, dripping, reset, running, slowly, status, text

QUICK = {"timeout": 0.3, "tries": 2}
VARIABLES = ("OPENAI_API_KEY", "MISTRAL_API_KEY", "AZURE_CONTENT_SAFETY_KEY", "PERSPECTIVE_API_KEY")


@pytest.fixture(autouse=True)
def keys(monkeypatch):
    for name in VARIABLES:
        monkeypatch.setenv(name, KEY)


def openai(url, **options):
    return OpenAI(OpenAIOptions(base_url=f"{url}/v1", **{**QUICK, **options}))


def mistral(url, **options):
    return Mistral(MistralOptions(base_url=f"{url}/v1", **{**QUICK, **options}))


def azure(url, **options):
    return Azure(AzureOptions(endpoint=url, **{**QUICK, **options}))


def perspective(url, **options):
    return Perspective(
        PerspectiveOptions(base_url=url, **{"requests_per_second": None, **QUICK, **options})
    )


SERVICES = {
    "openai": (openai, services.openai),
    "mistral": (mistral, services.mistral),
    "azure": (azure, services.azure),
    "perspective": (perspective, services.perspective),
}


@pytest.fixture(params=SERVICES)
def kind(request):
    return request.param


def ask(make, service, texts, **options):
    """Verdicts on `texts`, and the service's own notes."""

    async def main():
        async with running(service):
            moderator = make(service.url, **options)
            try:
                return await moderator.moderate(texts, prompts=[""] * len(texts))
            finally:
                await moderator.close()

    return asyncio.run(main())


def one(make, service, words="a bad text", **options):
    [verdict] = ask(make, service, [words], **options)
    return verdict


def test_verdicts_in_order(kind):
    make, answer = SERVICES[kind]
    service = Service(answer)
    texts = [
        "fine",
        "a bad one",
        "",
        "très bien 漢字 🙂",
        "bad \ud800 half",
        "x" * 100_000,
        "bad" + "y" * 100_000,
    ]
    verdicts = ask(make, service, texts, timeout=5)
    assert [v.decision for v in verdicts] == [
        "pass",
        "flag",
        "pass",
        "pass",
        "flag",
        "pass",
        "flag",
    ]
    assert {v.moderator for v in verdicts} == {kind}
    assert all(service.authorised)


def test_scores_and_categories():
    verdict = one(openai, Service(services.openai))
    assert (verdict.score, dict(verdict.categories)) == (0.9, {"violence": 0.9, "hate": 0.001})
    assert dict(one(mistral, Service(services.mistral)).categories) == {"violence_and_threats": 0.9}
    assert one(azure, Service(services.azure)).categories["Violence"] == pytest.approx(6 / 7)
    assert dict(one(perspective, Service(services.perspective)).categories) == {"TOXICITY": 0.9}


def test_topics_count_if_they_are_selected():
    assert one(mistral, Service(services.mistral), "fine", categories=["health"]).flagged


@pytest.mark.parametrize(
    ("options", "decision"),
    [
        ({"threshold": 0.95}, "pass"),
        ({"threshold": 0.95, "thresholds": {"violence": 0.8}}, "flag"),
        ({"categories": ["hate"]}, "pass"),
        ({"categories": ["hate"], "thresholds": {"hate": 0.0005}}, "flag"),
        ({"categories": ["harassment"]}, "failed"),
        ({"categories": ["illicit"]}, "failed"),
    ],
)
def test_selected_categories_and_their_thresholds(options, decision):
    assert one(openai, Service(services.openai), **options).decision == decision


FAULTS = {
    "429": (status(429), "HTTP 429"),
    "429, at once": (status(429, Retry_After="0"), "HTTP 429"),
    "429, tomorrow": (status(429, Retry_After="Fri, 31 Dec 2100 23:59:59 GMT"), "HTTP 429"),
    "429, garbage": (status(429, Retry_After="soon"), "HTTP 429"),
    "500": (status(500), "HTTP 500"),
    "503": (status(503), "HTTP 503"),
    "401": (status(401), "refuses access: HTTP 401"),
    "403": (status(403), "refuses access: HTTP 403"),
    "404": (status(404), "refuses access: HTTP 404"),
    "400": (status(400), "refuses the request: HTTP 400"),
    "302": (status(302, Location="http://127.0.0.1:1/"), "HTTP 302"),
    "hang": (slowly(60), "took too long"),
    "slow drip": (dripping, "took too long"),
    "reset": (reset, "connection to the service failed"),
    "truncated": (text('{"results": [{"category_sc'), "not JSON"),
    "html": (text("<html>bad</html>"), "not JSON"),
    "null": (text("null"), "has no"),
    "list": (text("[]"), "has no"),
    "empty": (text("{}"), "has no"),
    "deep": (text("[" * 100_000), "not JSON"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_end_in_a_failed_verdict_within_the_deadline(kind, fault, caplog):
    make, answer = SERVICES[kind]
    before, reason = FAULTS[fault]
    started = time.monotonic()
    with caplog.at_level(logging.DEBUG):
        verdict = one(make, Service(answer, before))
    assert verdict.decision == "failed"
    assert reason in verdict.reason
    assert time.monotonic() - started < 3
    assert KEY not in caplog.text + repr(verdict)
    assert "a bad text" not in caplog.text + repr(verdict)


def with_scores(**scores):
    return text(json.dumps({"results": [{"category_scores": scores}], "extra": {"a": 1}}))


@pytest.mark.parametrize("value", [1.5, -0.1, "0.9", True, float("nan"), float("inf"), [], {}])
def test_a_score_that_is_no_number_between_0_and_1(value):
    verdict = one(openai, Service(services.openai, with_scores(violence=value)))
    assert verdict.decision == "failed"
    assert "no number in [0, 1]" in verdict.reason


@pytest.mark.parametrize(
    "answer",
    [
        {"results": []},
        {"results": [1]},
        {"results": {}},
        {"results": [{}]},
        {"results": [{"category_scores": {}}]},
    ],
    ids=str,
)
def test_answers_of_the_wrong_shape(answer):
    assert one(openai, Service(services.openai, text(json.dumps(answer)))).decision == "failed"


@pytest.mark.parametrize("value", [None, True])
def test_no_category_that_counts_may_be_missing(value):
    assert (
        one(openai, Service(services.openai, with_scores(violence=0.02, hate=value))).decision
        == "failed"
    )
    assert (
        one(
            openai,
            Service(services.openai, with_scores(violence=0.02, hate=value)),
            categories=("violence",),
        ).decision
        == "pass"
    )


def test_older_models_do_not_judge_all_categories():
    assert (
        one(openai, Service(services.openai, with_scores(violence=0.02, illicit=None))).decision
        == "pass"
    )


def test_a_severity_is_no_truth_value():
    levels = [{"category": "Hate", "severity": True}]
    assert (
        one(
            azure, Service(services.azure, text(json.dumps({"categoriesAnalysis": levels})))
        ).decision
        == "failed"
    )


def large(coding, megabytes):
    body = b'{"results": [' + b" " * (megabytes * 2**20)
    if coding:
        body = gzip.compress(body)
    headers = {
        "Content-Type": "application/json",
        **({"Content-Encoding": coding} if coding else {}),
    }

    async def send(request):
        response = web.StreamResponse(headers={**headers, "Content-Length": str(len(body))})
        await response.prepare(request)
        with suppress(ConnectionError):
            await response.write(body)
        return response

    return lambda *_: send


@pytest.mark.parametrize(("coding", "megabytes", "most"), [("gzip", 300, 16), ("", 30, 60)])
def test_an_answer_that_is_too_large_is_not_read(coding, megabytes, most):
    service = Service(services.openai, large(coding, megabytes))
    tracemalloc.start()
    try:
        verdict = one(openai, service, tries=1)
        largest = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "too large" in verdict.reason
    assert largest < most * 2**20  # what is not packed, the service here has in memory, too


def test_compressed_answers_are_read():
    def packed(_, body):
        raw = gzip.compress(json.dumps(services.openai(body)).encode())
        return web.Response(
            body=raw, headers={"Content-Type": "application/json", "Content-Encoding": "gzip"}
        )

    assert one(openai, Service(services.openai, packed)).decision == "flag"


def test_a_busy_service_gets_no_rest():
    """Five of twenty calls at once are told to come again: all are judged."""
    service = Service(
        services.openai, lambda n, _: status(429, Retry_After="0.2")() if 15 < n <= 20 else None
    )
    words = [f"text {i}" for i in range(20)]
    verdicts = ask(openai, service, words, batch=1, timeout=2)
    assert [v.decision for v in verdicts] == ["pass"] * 20
    assert len(service.asked) == 25


def test_cookies_are_not_sent_back():
    seen = []

    def sets(*_):
        async def answer(request):
            seen.append(request.headers.get("Cookie"))
            found = web.json_response(services.openai({"model": "m", "input": ["a text"]}))
            found.set_cookie("who", "you")
            return found

        return answer

    ask(openai, Service(services.openai, sets), ["one", "two"], batch=1)
    assert seen == [None, None]


def test_a_key_in_the_place_of_its_name_is_not_shown():
    for pasted in (
        "sk-proj-abc123",
        "0123456789abcdef0123456789abcdef",
        "AKIA0123456789ABCDEF",
        "A" * 32,
    ):
        with pytest.raises(ConfigError) as raised:
            OpenAI(OpenAIOptions(key=pasted))
        assert pasted not in str(raised.value) + str(raised.value.hint)


def test_fields_that_are_not_documented_are_of_no_matter():
    assert (
        one(openai, Service(services.openai, with_scores(violence=0.1, brand_new=0.2))).decision
        == "pass"
    )


def test_a_fault_that_passes_is_tried_again():
    service = Service(services.openai, lambda n, _: status(503)() if n == 1 else None)
    assert one(openai, service).decision == "flag"
    assert len(service.asked) == 2


@pytest.mark.parametrize("code", [401, 403, 400])
def test_a_refusal_is_not_tried_again(code):
    service = Service(services.openai, status(code))
    one(openai, service)
    assert len(service.asked) == 1


def test_retry_after_is_waited_for():
    service = Service(
        services.openai, lambda n, _: status(429, Retry_After="0.3")() if n == 1 else None
    )
    assert one(openai, service).decision == "flag"
    assert service.times[1] - service.times[0] >= 0.3


def test_a_refused_batch_is_split_until_the_culprit_is_alone():
    service = Service(
        services.openai, lambda _, body: status(400)() if "poison" in body["input"] else None
    )
    texts = [f"text {i}" for i in range(20)] + ["poison", "a bad one"]
    verdicts = ask(openai, service, texts)
    assert [v.decision for v in verdicts] == ["pass"] * 20 + ["failed", "flag"]


def test_batches_are_as_large_as_told():
    service = Service(services.openai)
    ask(openai, service, [f"text {i}" for i in range(10)], batch=4)
    assert sorted(len(body["input"]) for body in service.asked) == [2, 4, 4]


def test_texts_are_asked_about_once():
    service = Service(services.openai)

    async def main():
        async with running(service):
            moderator = openai(service.url)
            calls = [
                moderator.moderate(["same", "same", f"own {i}"], prompts=[""] * 3) for i in range(5)
            ]
            first = await asyncio.gather(*calls)
            again = await moderator.moderate(["same"], prompts=[""])
            await moderator.close()
            return [v.decision for batch in (*first, again) for v in batch]

    assert set(asyncio.run(main())) == {"pass"}
    assert sum(body["input"].count("same") for body in service.asked) == 1


def test_a_caller_that_gives_up_takes_nobody_with_it():
    service = Service(services.openai, lambda n, _: slowly(60)() if n == 1 else None)

    async def main():
        async with running(service):
            moderator = openai(service.url, timeout=30)
            impatient = asyncio.ensure_future(moderator.moderate(["same"], prompts=[""]))
            await asyncio.sleep(0.05)
            patient = asyncio.ensure_future(moderator.moderate(["same"], prompts=[""]))
            await asyncio.sleep(0.05)
            impatient.cancel()
            [verdict] = await asyncio.wait_for(patient, 5)
            await moderator.close()
            return verdict.decision

    assert asyncio.run(main()) == "pass"


def test_failures_are_not_remembered():
    service = Service(services.openai, lambda n, _: status(500)() if n <= 2 else None)

    async def main():
        async with running(service):
            moderator = openai(service.url)
            found = [
                (await moderator.moderate(["same"], prompts=[""]))[0].decision for _ in range(2)
            ]
            await moderator.close()
            return found

    assert asyncio.run(main()) == ["failed", "pass"]


def test_one_moderator_serves_one_event_loop_after_another():
    service, moderator = Service(services.openai), openai("http://127.0.0.1:1")

    async def main():
        async with running(service):
            moderator.options = moderator.options.model_copy(update={"base_url": service.url})
            [verdict] = await moderator.moderate([f"a bad one {len(service.asked)}"], prompts=[""])
            await moderator.close()
            return verdict.decision

    assert [asyncio.run(main()) for _ in range(2)] == ["flag", "flag"]


def test_a_service_that_is_down_gets_a_rest():
    now = [0.0]

    async def sleep(seconds):
        now[0] += seconds

    service = Service(services.openai, lambda n, _: status(500)() if n <= 5 else None)

    async def main():
        async with running(service):
            http = Http(timeout=1, tries=1, clock=lambda: now[0], sleep=sleep)
            moderator = OpenAI(OpenAIOptions(base_url=service.url, cache=0), http=http)
            reasons = []
            for i in range(8):
                if i == 7:
                    now[0] += 20
                [verdict] = await moderator.moderate(["text"], prompts=[""])
                reasons.append(verdict.reason)
            await moderator.close()
            return reasons

    reasons = asyncio.run(main())
    assert ["rests" in r for r in reasons] == [False] * 5 + [True] * 2 + [False]
    assert reasons[-1] == ""
    assert len(service.asked) == 6


@pytest.mark.parametrize("fault", ["503", "hang", "reset", "truncated", "401", "429, tomorrow"])
def test_the_guard_ends_closed(kind, fault, caplog):
    make, answer = SERVICES[kind]

    async def main():
        async with running(Service(answer, FAULTS[fault][0])) as service:
            guard = scripted_guard([], gate=make(service.url), gate_seconds=0.5)
            outcome = await guard.review("hello", "a bad seekrit text")
            await guard.close()
            return outcome

    with caplog.at_level(logging.DEBUG):
        outcome = asyncio.run(main())
    assert outcome.action == "fallback"
    assert outcome.record.reason.startswith("gate failed")
    assert "seekrit" not in outcome.text + caplog.text
    assert KEY not in caplog.text + repr(outcome.record)


@pytest.mark.parametrize("name", SERVICES)
def test_a_missing_key_stops_the_start(name, monkeypatch):
    for variable in VARIABLES:
        monkeypatch.delenv(variable)
    options = {"endpoint": "http://127.0.0.1:1"} if name == "azure" else {}
    gate = {"use": name, "options": options}
    with pytest.raises(ConfigError, match=r"set the environment variable [A-Z_]+_KEY"):
        Guard.from_config(
            GuardConfig.parse({"gate": gate, "steerers": ["resample"]}), backend=ScriptedBackend([])
        )


def test_the_key_is_in_no_repr(kind):
    make, _ = SERVICES[kind]
    assert KEY not in repr(make("http://127.0.0.1:1")) + repr(
        vars(make("http://127.0.0.1:1"))["options"]
    )


@pytest.mark.parametrize(
    ("today", "options", "starts"),
    [
        (date(2026, 11, 1), {}, True),
        (date(2027, 1, 1), {}, False),
        (date(2027, 1, 1), {"allow_sunset": True}, True),
    ],
)
def test_perspective_says_that_it_ends(today, options, starts, caplog):
    if starts:
        Perspective(PerspectiveOptions(**options), today=lambda: today)
        assert "ends on 2026-12-31; use the moderator 'openai'" in caplog.text
    else:
        with pytest.raises(ConfigError, match="ended on 2026-12-31"):
            Perspective(PerspectiveOptions(**options), today=lambda: today)


@pytest.mark.slow
@pytest.mark.timing
def test_load():
    """5,000 texts, a limit of 100 requests a second, 5 % of the answers are faults."""
    late = []

    def before(n, _):
        now = time.monotonic()
        if sum(now - t < 1 for t in service.times[-110:]) > 100:
            late.append(n)
            return status(429)()
        return status(500)() if n % 20 == 7 else None

    service = Service(services.openai, before)
    texts = [f"{'bad' if i % 7 == 0 else 'fine'} {i}" for i in range(5000)]
    verdicts = ask(openai, service, texts, batch=4, requests_per_second=100, timeout=5, tries=5)
    assert [v.decision for v in verdicts] == ["flag" if i % 7 == 0 else "pass" for i in range(5000)]
    warm = service.times[100:]
    rate = (len(warm) - 1) / (warm[-1] - warm[0])
    print(f"{len(service.asked)} requests, {rate:.1f} a second, {len(late)} over the limit")
    # A machine that stalls delivers some late, together with the next ones.
    assert len([n for n in late if n > 100]) <= 0.01 * len(service.asked)
    assert rate >= 90


def test_they_keep_the_contract(kind):
    make, answer = SERVICES[kind]
    service, ready, ended = Service(answer), threading.Event(), threading.Event()

    async def serve():
        async with running(service):
            ready.set()
            await asyncio.to_thread(ended.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        ready.wait(10)
        check_moderator(make(service.url, timeout=5))
    finally:
        ended.set()
        thread.join(10)
