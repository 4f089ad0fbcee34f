"""What the rail costs, and what many conversations do to it."""

from __future__ import annotations

import asyncio
import gc
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import pytest
from nemoguardrails import LLMRails
from nemoguardrails.actions import action
from nemoguardrails.actions.rail_outcome import RailOutcome

from ttsa_guard.config import GuardConfig
from ttsa_guard.embedded.world import World
from ttsa_guard.guard import Guard
from ttsa_guard.messages import GenerationRequest
from ttsa_guard.nemo import BackendModel, install, passthrough_app
from ttsa_guard.steerers.baselines.resample import Resample, ResampleOptions
from ttsa_guard.testing import ScriptedBackend, ScriptedModerator

from .conftest import CHAT_V2, make_config, make_guard
from .matrix import SAFE, Backend

ROUNDS, ANSWERS = 6, 75


@action(name="allow_all", is_system_action=True)
async def allow_all() -> RailOutcome:
    return RailOutcome.allow()


NO_RAIL = {"1.0": {}, "2.x": {"colang": CHAT_V2}}
# As the host's own rails are: a flow that asks an action, and looks at what it says.
EMPTY_RAIL: dict[str, dict[str, Any]] = {
    "1.0": {
        "colang": "define subflow allow\n  $o = execute allow_all\n  if $o.is_blocked\n    stop\n",
        "rails": {"output": {"flows": ["allow"]}},
    },
    "2.x": {
        "colang": f"{CHAT_V2}\nflow allow\n  $o = await AllowAllAction()\n"
        "  if $o.is_blocked\n    abort\n\nflow output rails $output_text\n  allow\n"
    },
}


@pytest.mark.slow
@pytest.mark.timing
@pytest.mark.parametrize("version", ["1.0", "2.x"])
def test_an_unflagged_answer_costs_less_than_a_millisecond(version: str) -> None:
    """Beside what the host spends on any output rail, which is most of it. Nothing here waits, so
    the time of the processor is that of the user; the time of the clock would be that of other
    processes, too."""

    def app(**settings: Any) -> LLMRails:
        return LLMRails(
            make_config(version, passthrough=True, **settings), llm=BackendModel(Backend())
        )

    apps = {"none": app(**NO_RAIL[version]), "empty": app(**EMPTY_RAIL[version]), "ours": app()}
    apps["empty"].register_action(allow_all, "allow_all")
    # which has no answer, and raises if it is asked
    install(apps["ours"], make_guard(ScriptedBackend([])))

    async def measured() -> dict[str, float]:
        taken: dict[str, list[float]] = {name: [] for name in apps}
        for i in range(ANSWERS):
            for name, app in apps.items():
                started = time.thread_time()
                reply = await app.generate_async(
                    messages=[{"role": "user", "content": f"pass {i}"}]
                )
                taken[name].append(time.thread_time() - started)
                assert reply["content"] == SAFE
        # Other work of the machine can only add to these times, so the fastest tell most.
        return {name: quantiles(times, n=10)[0] * 1000 for name, times in taken.items()}

    for _ in range(ROUNDS):
        ms = asyncio.run(measured())
        empty, ours = ms["empty"] - ms["none"], ms["ours"] - ms["none"]
        print(
            f"{version}: no rail {ms['none']:.2f} ms, an empty rail + {empty:.2f} ms, ours +"
            f" {ours:.2f} ms"
        )
        # On a slower processor, what the host spends tells how much slower it is.
        if ours - empty < max(1, empty / 4, ms["none"] / 8):
            return
    pytest.fail("other work of the machine can slow down some of the rounds, but not all")


@pytest.mark.slow
@pytest.mark.parametrize("version", ["1.0", "2.x"])
def test_conversations_at_once_do_not_mix(version: str) -> None:
    class Telling(Backend):
        """Tells every conversation its own number, and steers the flagged half of them."""

        async def _said(self, request: GenerationRequest) -> str:
            number = "".join(map(chr, request.prompt.ids)).split()[-1]
            await asyncio.sleep(0.001 * (int(number) % 7))
            return (
                f"A fine answer, number {number}."
                if request.temperature == 1 or int(number) % 2
                else f"A bad one, {number}."
            )

    backend = Telling()
    guard = make_guard(
        backend, gate=ScriptedModerator(delay=0.002), guide=ScriptedModerator(delay=0.001)
    )
    app = LLMRails(make_config(version, passthrough=True), llm=BackendModel(backend))
    install(app, guard)

    async def one(number: int) -> str:
        return str(
            (await app.generate_async(messages=[{"role": "user", "content": f"number {number}"}]))[
                "content"
            ]
        )

    async def run() -> list[str]:
        return list(await asyncio.wait_for(asyncio.gather(*map(one, range(64))), 60))

    assert asyncio.run(run()) == [f"A fine answer, number {number}." for number in range(64)]


@pytest.mark.slow
def test_memory_is_flat_over_many_answers() -> None:
    backend = Backend()
    gate, guide = ScriptedModerator(name="gate"), ScriptedModerator(name="guide")
    app = LLMRails(make_config("1.0", passthrough=True), llm=BackendModel(backend))
    install(
        app, make_guard(backend, gate=gate, guide=guide, steerers=[Resample(ResampleOptions(n=1))])
    )

    async def answer(start: int, n: int) -> tuple[int, int]:
        """Objects and resident pages after `n` answers, each in its own task as on a server."""
        for i in range(start, start + n):
            words = f"{'pass' if i % 2 else 'swap'} {i}"
            await asyncio.ensure_future(
                app.generate_async(messages=[{"role": "user", "content": words}])
            )
            for fake in (backend, gate, guide):
                fake.calls.clear()
        gc.collect()
        return len(gc.get_objects()), int(Path("/proc/self/statm").read_text().split()[1])

    async def run() -> list[tuple[int, int]]:
        # The first thousand fill the host's history, which the rail keeps from growing further.
        return [await answer(0, 1100), await answer(1100, 2000)]

    (objects, pages), (objects_after, pages_after) = asyncio.run(run())
    print(
        f"2,000 more answers: objects * {objects_after / objects:.3f}, memory *"
        f" {pages_after / pages:.3f}"
    )
    assert objects_after <= 1.01 * objects
    assert pages_after <= 1.05 * pages


@pytest.mark.slow
@pytest.mark.timing
def test_progressive_streams_begin_sooner() -> None:
    firsts: dict[str, list[float]] = {"buffered": [], "progressive": []}
    apps = {
        mode: passthrough_app(Guard.from_config(GuardConfig.parse({"streaming": mode})))
        for mode in firsts
    }

    async def read(app: LLMRails, messages: Any) -> tuple[float, str]:
        started, first, text = time.perf_counter(), 0.0, ""
        async for piece in app.stream_async(messages=messages):
            first = first or time.perf_counter() - started
            text += piece
        return first, text

    async def run() -> None:
        for case in World.load().cases("benign", None, 12, seed=5):
            messages = [{"role": role, "content": text} for role, text in case.messages]
            replies = [await read(app, messages) for app in apps.values()]
            for times, (first, _) in zip(firsts.values(), replies, strict=True):
                times.append(first)
            assert replies[0][1] == replies[1][1]

    asyncio.run(run())
    ratio = median(p / b for b, p in zip(*firsts.values(), strict=True))
    print(f"first text after {median(firsts['buffered']) * 1000:.0f} ms, progressive * {ratio:.2f}")
    assert ratio < 0.6
