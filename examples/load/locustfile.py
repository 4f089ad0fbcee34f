"""Load on a guarded endpoint: plain and streamed answers, most of them unflagged.

The README beside this file says how to run it.
"""

import json
from typing import Any

import psutil
import requests
from locust import FastHttpUser, between, events, task
from locust.env import Environment

PATH = "/v1/chat/completions"
PLAIN = "How do I draw an owl?"
FLAGGED = "Mock me like a rude clown. How do I draw an owl?"
"""The stand-in `upstream.py` answers this so that the gate flags it."""
RUDE = ("fool", "stupid", "loser")
"""Words of that answer. Nobody may get them."""


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    parser.add_argument("--config-id", default="", help="configuration of a NeMo server")
    parser.add_argument("--pid", type=int, default=0, help="process whose memory is watched")
    parser.add_argument("--growth", type=float, default=1.1, help="how far its memory may grow")


class Visitor(FastHttpUser):
    """One who chats: of 20 questions, 5 are streamed, and one is answered badly."""

    # Uvicorn closes a connection that was idle for 5 s: a request at that moment would fail.
    wait_time = between(6, 14)
    network_timeout = connection_timeout = 120.0

    @task(14)
    def unflagged(self) -> None:
        self.ask(PLAIN, "unflagged")

    @task(5)
    def streamed(self) -> None:
        self.ask(PLAIN, "unflagged, streamed", stream=True)

    @task(1)
    def flagged(self) -> None:
        self.ask(FLAGGED, "flagged")

    def ask(self, question: str, name: str, *, stream: bool = False) -> None:
        asked = body(self.environment, question, stream=stream)
        with self.client.post(PATH, json=asked, name=name, catch_response=True) as response:
            if response.status_code != 200:
                return  # counted as a failure as it is
            said = joined(response.text) if stream else text_of(response.json())
            if not said.strip():
                response.failure("an empty answer")
            elif any(word in said.lower() for word in RUDE):
                response.failure("a flagged answer got out")


def body(environment: Environment, question: str, *, stream: bool = False) -> dict[str, Any]:
    asked = {"model": "stand-in", "messages": [{"role": "user", "content": question}]}
    config = environment.parsed_options.config_id
    return {**asked, "stream": stream, **({"guardrails": {"config_id": config}} if config else {})}


def text_of(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["message"]["content"] or "")


def joined(stream: str) -> str:
    """Return the text of a stream of server-sent events."""
    chunks = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk.get("choices", ())]
    return "".join(delta.get("content") or "" for delta in deltas)


@events.test_start.add_listener
def warm_up(environment: Environment, **_: Any) -> None:
    """Ask both questions once, because some servers load their models at the first request."""
    for question in (PLAIN, FLAGGED):
        asked = body(environment, question)
        requests.post(f"{environment.host}{PATH}", json=asked, timeout=300).raise_for_status()


@events.init.add_listener
def watch_memory(environment: Environment, **_: Any) -> None:
    """Measure the memory when all users are there and at the end; fail if it has grown."""
    given = environment.parsed_options
    process = psutil.Process(given.pid) if given.pid else None
    measured: list[int] = []

    @environment.events.spawning_complete.add_listener
    @environment.events.test_stop.add_listener
    def measure(**_: Any) -> None:
        if process:
            measured.append(process.memory_info().rss)

    @environment.events.quitting.add_listener
    def judge(**_: Any) -> None:
        if len(measured) > 1:
            growth = measured[-1] / measured[0]
            print(f"memory: {measured[0] / 2**20:.0f} MiB with all users, then x{growth:.3f}")
            if growth > given.growth:
                environment.process_exit_code = 1
