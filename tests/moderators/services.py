"""Local servers that speak the protocols of moderation services, as they are documented."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager

from aiohttp import web

KEY = "sk-very-secret"


def score(text):
    return 0.9 if "bad" in text else 0.01


def openai(body):
    assert set(body) == {"model", "input"}
    assert isinstance(body["input"], list)
    results = [
        {
            "flagged": score(text) > 0.5,
            "categories": {"violence": score(text) > 0.5, "hate": False},
            "category_scores": {"violence": score(text), "hate": 0.001, "illicit": None},
            "category_applied_input_types": {"violence": ["text"], "hate": ["text"]},
        }
        for text in body["input"]
    ]
    return {"id": "modr-1", "model": body["model"], "results": results}


def mistral(body):
    results = [
        {
            "categories": {},
            "category_scores": {"violence_and_threats": score(text), "health": 0.99, "pii": 0.9},
        }
        for text in body["input"]
    ]
    return {"id": "1", "model": body["model"], "results": results}


def azure(body):
    assert len(body["text"]) <= 10_000
    assert body["outputType"] == "EightSeverityLevels"
    levels = [
        {"category": c, "severity": 6 if c == "Violence" and "bad" in body["text"] else 0}
        for c in body["categories"]
    ]
    return {"blocklistsMatch": [], "categoriesAnalysis": levels}


def perspective(body):
    assert body["doNotStore"] is True
    text = body["comment"]["text"]
    value = {"value": score(text), "type": "PROBABILITY"}
    spans = [{"begin": 0, "end": len(text), "score": value}]
    scores = {
        name: {"spanScores": spans, "summaryScore": value} for name in body["requestedAttributes"]
    }
    return {"attributeScores": scores, "languages": body["languages"], "detectedLanguages": ["en"]}


class Service:
    """Answers with `answer`, after `before` has had a chance to answer something else. Keeps what
    it was asked."""

    def __init__(self, answer, before=lambda *_: None):
        self.answer, self.before = answer, before
        self.asked, self.times, self.authorised = [], [], []
        self.url = ""

    async def handle(self, request):
        body = await request.json()
        self.times.append(time.monotonic())
        self.asked.append(body)
        sent = (
            request.headers.get(name, "")
            for name in ("Authorization", "Ocp-Apim-Subscription-Key", "X-Goog-Api-Key")
        )
        self.authorised.append(any(KEY in header for header in sent))
        other = self.before(len(self.asked), body)
        if callable(other):
            other = await other(request)
        return other if other is not None else web.json_response(self.answer(body))


@asynccontextmanager
async def running(service):
    """The service on a port of this machine."""
    app = web.Application(client_max_size=10**8)
    app.router.add_post("/{path:.*}", service.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    service.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
    try:
        yield service
    finally:
        await runner.cleanup()


def status(code, **headers):
    return lambda *_: web.Response(
        status=code, headers={k.replace("_", "-"): v for k, v in headers.items()}, text="bad words"
    )


def text(content):
    return lambda *_: web.Response(text=content, content_type="application/json")


def slowly(seconds):
    async def hang(_):
        await asyncio.sleep(seconds)
        return web.Response(text="{}")

    return lambda *_: hang


def dripping(*_):
    async def drip(request):
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(100):
            await response.write(b" ")
            await asyncio.sleep(0.05)
        return response

    return drip


def reset(*_):
    async def cut(request):
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b'{"results": [')
        request.transport.abort()
        return response

    return cut
