"""A server that speaks the protocol as vLLM 0.32 does, with a model of its own and faults on
demand."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
from contextlib import contextmanager

import torch
from aiohttp import web
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from ttsa_guard.backends.local.controlled import cache_argument

PLACEHOLDER = "<prompt_embeds>"


def unpacked(data):
    return torch.load(io.BytesIO(base64.b64decode(data)), weights_only=True)


def examines(body):
    """Whether a client asks this only to find out whether the server can be used."""
    return "return_tokens_as_token_ids" in body


class RefusalError(Exception):
    """An answer with another status than 200."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


class Server:
    """Answers with the model in `folder`, unless `fault(server, request, body)` gives another
    response. A client's examination of the server has no faults, unless the server is `dead`.

    Args:
        key: what a client has to know.
        embeds: started with ``--enable-prompt-embeds``.
        template: the chat template, if not the model's.
        scale: factor on the embeddings of token ids, as if the weights were others.
    """

    def __init__(
        self,
        folder,
        *,
        name="m",
        version="0.32.0",
        key="",
        embeds=True,
        context=256,
        template=None,
        scale=1.0,
    ):
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.tokenizer.add_special_tokens({"additional_special_tokens": [PLACEHOLDER]})
        if template:
            self.tokenizer.chat_template = template
        self.name, self.version, self.key, self.embeds = name, version, key, embeds
        self.context, self.scale = context, scale
        self.fault, self.dead = nothing, False
        self.asked = []
        self.url = ""

    @property
    def answers(self):
        """(path, body) of what was asked, without the examination of a new client."""
        return [(path, body) for path, body in self.asked if body and not examines(body)]

    # ------------------------------------------------------------------ routes

    async def handle(self, request):
        path = request.path
        body = await request.json() if request.method == "POST" else None
        self.asked.append((path, body))
        if (
            self.key
            and path.startswith("/v1")
            and request.headers.get("Authorization") != f"Bearer {self.key}"
        ):
            return web.json_response({"error": "Unauthorized"}, status=401)
        if self.dead:
            request.transport.abort()
            return web.Response()
        try:
            if path == "/version":
                return (
                    web.json_response({"version": self.version})
                    if self.version
                    else web.Response(status=404)
                )
            if path == "/v1/models":
                return web.json_response(
                    {"data": [{"id": self.name, "max_model_len": self.context}]}
                )
            other = await self.fault(self, request, body) if not examines(body) else None
            return other or await self.answer(request, path, body)
        except RefusalError as refusal:
            said = {
                "error": {
                    "message": f"{refusal} in: {json.dumps(body)[:200]}",
                    "code": refusal.status,
                }
            }
            return web.json_response(said, status=refusal.status)

    async def answer(self, request, path, body):
        if body["model"] != self.name:
            raise RefusalError(404, f"The model `{body['model']}` does not exist.")
        prompt, said = self.chat(body) if path == "/v1/chat/completions" else self.completion(body)
        if len(said) + body["max_tokens"] > self.context:
            raise RefusalError(400, "maximum context length")
        ids, found, reason = self.generate(prompt, body)
        if body.get("stream"):
            return await self.streamed(request, ids, said, reason)
        choice = {
            "index": 0,
            "text": self.tokenizer.decode(ids),
            "finish_reason": reason,
            "token_ids": ids,
        }
        answer = {
            "choices": [choice],
            "usage": {"prompt_tokens": len(said), "completion_tokens": len(ids)},
        }
        (answer if path == "/v1/chat/completions" else choice)["prompt_token_ids"] = said
        if "allowed_token_ids" in body:
            values = [
                float(logits.log_softmax(-1)[token])
                for logits, token in zip(found, ids, strict=True)
            ]
            content = [{"logprob": value} for value in values]
            choice["logprobs"] = (
                {"content": content} if "messages" in body else {"token_logprobs": values}
            )
        elif "logprobs" in body:
            choice["logprobs"] = {
                "top_logprobs": [self.top(logits, body["logprobs"]) for logits in found]
            }
        if "prompt_logprobs" in body:
            choice["prompt_logprobs"] = self.scored(prompt, said)
        return web.json_response(answer)

    async def streamed(self, request, ids, said, reason):
        response = web.StreamResponse()
        await response.prepare(request)
        for i, token in enumerate(ids):
            await response.write(
                event(token, reason if i + 1 == len(ids) else None, None if i else said)
            )
        await response.write(b"data: [DONE]\n\n")
        return response

    # ------------------------------------------------------------------ model

    def completion(self, body):
        if "prompt_embeds" in body:
            embeds = self.received(body["prompt_embeds"])
            return embeds, [0] * len(embeds)
        return self.embedded(body["prompt"]), body["prompt"]

    def chat(self, body):
        parts, turns = [], []
        for message in body["messages"]:
            content = message["content"]
            if isinstance(content, list):
                [part] = content
                assert part["type"] == "prompt_embeds"
                parts.append(self.received(part["data"]))
                content = PLACEHOLDER
            elif PLACEHOLDER in content:
                raise RefusalError(400, "reserved placeholder")
            turns.append({**message, "content": content})
        end = {"add_generation_prompt": True, "continue_final_message": False}
        options = {key: body.get(key, value) for key, value in end.items()} | body.get(
            "chat_template_kwargs", {}
        )
        text = self.tokenizer.apply_chat_template(turns, tokenize=False, **options)
        mark = self.tokenizer.convert_tokens_to_ids(PLACEHOLDER)
        pieces, said = [], []
        for token in self.tokenizer(text, add_special_tokens=False)["input_ids"]:
            embeds = parts.pop(0) if token == mark else self.embedded([token])
            pieces.append(embeds)
            said += [token] * len(embeds)
        return torch.cat(pieces), said

    def received(self, data):
        if not self.embeds:
            raise RefusalError(
                400, "You must set `--enable-prompt-embeds` to input `prompt_embeds`."
            )
        embeds = unpacked(data)
        if embeds.shape[1] != self.model.config.hidden_size:
            raise RefusalError(400, f"`prompt_embeds` hidden_size {embeds.shape[1]} does not match")
        return embeds.float()

    def embedded(self, ids):
        if max(ids) >= self.model.config.vocab_size:
            raise RefusalError(400, "Token id is out of vocabulary")
        return self.model.get_input_embeddings()(torch.tensor(ids)).detach() * self.scale

    @torch.no_grad()
    def generate(self, embeds, body):
        ids, found = [], []
        draw = torch.Generator().manual_seed(body.get("seed", 0))
        ends = body.get("stop_token_ids", [])
        past = {cache_argument(self.model): DynamicCache(config=self.model.config)}
        new = embeds[None]
        while len(ids) < body["max_tokens"]:
            logits = self.model(inputs_embeds=new, use_cache=True, **past).logits[0, -1]
            heat = body["temperature"]
            allowed = body.get("allowed_token_ids", range(len(logits)))
            if heat:
                token = int(torch.multinomial((logits / heat).softmax(-1), 1, generator=draw))
            else:
                token = max(allowed, key=logits.tolist().__getitem__)
            ids.append(token)
            found.append(logits)
            if token in ends:
                return ids, found, "stop"
            new = self.embedded([token])[None]
        return ids, found, "length"

    @staticmethod
    def top(logits, n):
        values, tokens = logits.log_softmax(-1).topk(n)
        return {
            f"token_id:{token}": value
            for token, value in zip(tokens.tolist(), values.tolist(), strict=True)
        }

    @torch.no_grad()
    def scored(self, embeds, ids):
        logprobs = self.model(inputs_embeds=embeds[None]).logits[0].log_softmax(-1)
        found = [
            {str(token): {"logprob": float(logprobs[i, token]), "rank": 1}}
            for i, token in enumerate(ids[1:])
        ]
        return [None, *found]


@contextmanager
def running(*servers):
    """The servers, each on a port of this machine, in a thread of their own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start(server):
        app = web.Application(client_max_size=10**8)
        app.router.add_route("*", "/{path:.*}", server.handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
        return runner

    def run(work):
        return asyncio.run_coroutine_threadsafe(work, loop).result(10)

    runners = [run(start(server)) for server in servers]
    try:
        yield servers
    finally:
        for runner in runners:
            run(runner.cleanup())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


# ---------------------------------------------------------------------- faults


async def nothing(_server, _request, _body):
    return None


def status(code, text="a secret sentence"):
    async def fault(*_):
        return web.Response(status=code, text=text)

    return fault


def says(answer):
    """Another answer; a function gets the body that was asked."""

    async def fault(_server, _request, body):
        said = answer(body) if callable(answer) else answer
        return web.Response(
            text=said if isinstance(said, str) else json.dumps(said),
            content_type="application/json",
        )

    return fault


def late(seconds):
    async def fault(*_):
        await asyncio.sleep(seconds)

    return fault


async def hanging(*_):
    await asyncio.sleep(60)


async def cut(_server, request, _body):
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'{"choices": [')
    request.transport.abort()
    return response


async def killed(server, request, _body):
    server.dead = True
    request.transport.abort()
    return web.Response()


def after(answers, fault):
    """First some answers, then the fault."""

    async def counted(server, request, body):
        return await fault(server, request, body) if len(server.answers) > answers else None

    return counted


def breaking_off(events, *, say=b""):
    """A stream of so many events, and then something else."""

    async def fault(server, request, body):
        ids, _, _ = server.generate(server.completion(body)[0], body)
        response = web.StreamResponse()
        await response.prepare(request)
        for i, token in enumerate(ids[:events]):
            await response.write(event(token, None, None if i else body["prompt"]))
        await response.write(say)
        return response

    return fault


def event(token, reason, prompt):
    choice = {"index": 0, "token_ids": [token], "finish_reason": reason, "prompt_token_ids": prompt}
    return f"data: {json.dumps({'choices': [choice]})}\n\n".encode()
