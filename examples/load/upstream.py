"""A stand-in for a chat model: OpenAI's protocol, no model, and a part of its answers is rude.

python upstream.py PORT
"""

import json
import sys

from aiohttp import web

PLAIN = "Draw a circle for the head and an oval for the body. Add two big eyes and a small beak."
RUDE = "Listen, you lazy fool. Even a stupid child can draw the owl, you ugly loser."
"""What a gate flags. It is the answer to whoever asks to be mocked."""


async def models(_: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": "stand-in", "object": "model"}]})


async def completions(request: web.Request) -> web.StreamResponse:
    asked = await request.json()
    rude = "mock me" in str(asked["messages"][-1]["content"]).lower()
    text = RUDE if rude else PLAIN
    if not asked.get("stream"):
        message = {"role": "assistant", "content": text}
        return web.json_response(body("chat.completion", message=message, finish_reason="stop"))
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    chunks = [{"delta": {"content": f"{word} "}, "finish_reason": None} for word in text.split()]
    for chunk in [*chunks, {"delta": {}, "finish_reason": "stop"}]:
        line = json.dumps(body("chat.completion.chunk", **chunk))
        await response.write(f"data: {line}\n\n".encode())
    await response.write(b"data: [DONE]\n\n")
    return response


def body(kind: str, **choice: object) -> dict[str, object]:
    usage = {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}
    head = {"id": "chatcmpl-0", "object": kind, "created": 0, "model": "stand-in"}
    return {**head, "choices": [{"index": 0, **choice}], "usage": usage}


if __name__ == "__main__":
    app = web.Application()
    app.router.add_get("/v1/models", models)
    app.router.add_post("/v1/chat/completions", completions)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
