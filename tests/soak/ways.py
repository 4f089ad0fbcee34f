"""The ways of running a conversation: each gives what the user reads, turn by turn, and looks
through what it got."""

from __future__ import annotations

import json
from typing import Any

import httpx
from nemoguardrails.colang.v2_x.runtime.serialization import state_to_json
from nemoguardrails.rails.llm.options import GenerationResponse
from nemoguardrails.server import api

from tests.pictures import image_part

from .parts import Case, Way, World

EVERYTHING: dict[str, Any] = {
    "log": {
        "activated_rails": True,
        "llm_calls": True,
        "internal_events": True,
        "colang_history": True,
    },
    "output_vars": True,
    "llm_output": True,
}
TURNS = 2
_PICTURE = image_part()
_ERROR = '{"error"'


class StreamError(Exception):
    """A stream that ends with an error of the host's."""


def _content(case: Case) -> Any:
    return [{"type": "text", "text": case.user}, _PICTURE] if case.rails == "images" else case.user


def _messages(case: Case) -> list[dict[str, Any]]:
    return [{"role": "user", "content": _content(case)}]


def _options(case: Case) -> dict[str, Any] | None:
    if not case.everything or case.version != "1.0":
        return None
    # The host's server cannot hand out a log with tool calls.
    return None if case.rails == "tools" and case.way.startswith("server") else EVERYTHING


def _read(reply: Any) -> str:
    """The text of a reply in one of the host's shapes."""
    message = reply.response[-1] if isinstance(reply, GenerationResponse) else reply
    return str(message["content"])


def _shown(stream: str) -> str:
    if _ERROR in stream:
        raise StreamError(stream)
    return stream


async def plain(world: World, case: Case) -> list[str]:
    reply = await world.app(case).generate_async(messages=_messages(case), options=_options(case))
    world.finder.look("reply", reply)
    return [_read(reply)]


async def events(world: World, case: Case) -> list[str]:
    said = {"type": "UtteranceUserActionFinished", "final_transcript": _content(case)}
    if case.version == "1.0":
        found = await world.app(case).generate_events_async([said])
        world.finder.look("events", found)
        return ["\n".join(_scripts(found))]
    found, state = await world.app(case).process_events_async(
        [{**said, "action_uid": "1", "is_success": True}], None, True
    )
    world.finder.look("events", found)
    world.finder.look("state", state)
    return ["\n".join(_scripts(found))]


def _scripts(found: list[dict[str, Any]]) -> list[str]:
    return [event["script"] for event in found if event["type"] == "StartUtteranceBotAction"]


async def state(world: World, case: Case) -> list[str]:
    """Two turns, the second one from the state that the first one left."""
    return await (_state_1(world, case) if case.version == "1.0" else _state_2(world, case))


async def _state_1(world: World, case: Case) -> list[str]:
    kept: Any = {}
    texts = []
    for _ in range(TURNS):
        reply = await world.app(case).generate_async(
            messages=_messages(case), options=_options(case), state=kept
        )
        world.finder.look("reply", reply)
        kept = reply.state
        texts.append(_read(reply))
    return texts


async def _state_2(world: World, case: Case) -> list[str]:
    kept: Any = None
    said: list[dict[str, Any]] = []
    texts = []
    for turn in range(TURNS):
        said.append(
            {
                "type": "UtteranceUserActionFinished",
                "final_transcript": _content(case),
                "action_uid": f"user {turn}",
                "is_success": True,
            }
        )
        found, kept = await world.app(case).process_events_async(said, kept, True)
        world.finder.look("events", found)
        world.finder.look("state", kept)
        # the host cannot store what other rails of its own return
        if case.rails != "rewrites before":
            world.finder.look("stored state", state_to_json(kept))
        texts.append("\n".join(_scripts(found)))
        said = [
            {
                "type": "UtteranceBotActionFinished",
                "action_uid": event["action_uid"],
                "final_script": event["script"],
                "is_success": True,
            }
            for event in found
            if event["type"] == "StartUtteranceBotAction"
        ]
    return texts


async def streamed(world: World, case: Case) -> list[str]:
    pieces = []
    async for piece in world.app(case).stream_async(
        messages=_messages(case), options=_options(case)
    ):
        world.finder.look("stream", piece)
        pieces.append(str(piece))
    world.finder.look("stream", "".join(pieces))
    return [_shown("".join(pieces))]


async def server(world: World, case: Case) -> list[str]:
    reply = await _post(world, case, stream=False)
    return [str(reply.json()["choices"][0]["message"].get("content") or "")]


async def server_streamed(world: World, case: Case) -> list[str]:
    lines = (await _post(world, case, stream=True)).text.splitlines()
    chunks = [
        json.loads(line[6:])
        for line in lines
        if line.startswith("data: ") and line != "data: [DONE]"
    ]
    if errors := [chunk for chunk in chunks if "error" in chunk]:
        raise StreamError(str(errors))
    return ["".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)]


async def _post(world: World, case: Case, *, stream: bool) -> httpx.Response:
    """A request to the host's server, in this process."""
    name = f"soak {case.number % 2}"
    api.llm_rails_instances[api._generate_cache_key([name], case.name)] = world.app(case)
    guardrails = {"config_id": name, "options": _options(case) or {}}
    body = {
        "model": case.name,
        "messages": _messages(case),
        "stream": stream,
        "guardrails": guardrails,
    }
    try:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app=api.app), base_url="http://soak"
        ) as client:
            reply = await client.post("/v1/chat/completions", json=body, timeout=60)
    finally:
        api.llm_rails_instances.pop(api._generate_cache_key([name], case.name), None)
    world.finder.look("response", reply.text)
    reply.raise_for_status()
    return reply


WAYS: dict[str, Way] = {
    "plain": plain,
    "events": events,
    "state": state,
    "streamed": streamed,
    "progressive": streamed,
    "server": server,
    "server streamed": server_streamed,
}
