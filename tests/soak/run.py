"""Thousands of conversations in which something is broken; one JSON line says what came of them.

``python -m tests.soak.run --conversations 10500 --seed 1``
"""

from __future__ import annotations

import argparse
import asyncio
import contextvars
import gc
import itertools
import json
import logging
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemoguardrails.rails.llm import llmrails

from ttsa_guard.moderators.questions import find_question

from .faults import KINDS
from .finder import Finder, canary
from .parts import CASES, FALLBACK, RAILS, REWRITING, Case, World, current, masked
from .ways import WAYS

TOGETHER = 64
CANCELLED = 0.1
LONGEST = 150.0
"""Seconds for one conversation: the guard's limits, and the time that 63 others take on a machine
that is busy with more."""
WARM = 0.2
"""Share of the conversations after which memory is measured for the first time."""
TIDIED = 250
_RAILS_EACH = 3
_TYPICAL = 60
_REFUSALS = ("I'm sorry, I can't respond to that.", "I'm sorry, an internal error has occurred.")


def cases(n: int, seed: int) -> list[Case]:
    """`n` cases, or all: each version, way, part and kind of fault, with three of the rails each,
    in random order."""
    dice = random.Random(seed)
    faults = [(part, kind) for part, kinds in KINDS.items() for kind in kinds]
    drawn = []
    for version, way, (part, kind) in itertools.product(("1.0", "2.x"), WAYS, faults):
        possible = [rails for rails in RAILS if can_be(version, way, rails)]
        drawn += [(version, way, rails, part, kind) for rails in dice.sample(possible, _RAILS_EACH)]
    dice.shuffle(drawn)
    return [
        Case(
            number,
            canary(seed, number),
            *what,
            late=dice.random() < 0.4,
            safe=dice.random() < 0.15,
            found=dice.random() < 0.8,
            everything=dice.random() < 0.6,
            cancel=dice.random() if dice.random() < CANCELLED else None,
        )
        for number, what in enumerate(drawn[:n])
    ]


def can_be(version: str, way: str, rails: str) -> bool:
    """Whether the host, and the guard, take this combination."""
    if way == "progressive" and rails in REWRITING:
        return False  # refused at start
    return version == "1.0" or rails != "images"  # without an answer in 2.x


def sound(case: Case) -> dict[str, str]:
    """The replies that this conversation may have, and what each of them is."""
    ends = {case.swap: "swap", FALLBACK: "fallback", **dict.fromkeys(_REFUSALS, "fallback")}
    if case.safe:
        ends[case.answer] = "answer"
    if case.part == "backend":
        ends[""] = "answer"  # the model itself says nothing
    if case.rails == "tools":
        # What was said beside it is dropped by the host, but for what has been shown of it.
        ends |= dict.fromkeys(("", case.shown, f"{case.shown} Two is fine."), "tool call")
    if case.way == "progressive":
        for shown in (
            case.shown,
            f"{case.shown} Two is fine.",
            f"{case.shown} Two is fine. Three is fine.",
        ):
            ends |= {f"{shown} {case.swap}": "swap", f"{shown}\n\n{FALLBACK}": "fallback"}
    return (
        ends | {masked(text): end for text, end in ends.items()}
        if case.rails in REWRITING
        else ends
    )


class Cancelling:
    """Runs a coroutine, and cancels the task that it is in at one of its awaits.

    Args:
        at: number of that await; None: at none.
    """

    def __init__(self, work: Any, at: int | None) -> None:
        self.work, self.at, self.awaits = work, at, 0

    def __await__(self) -> Generator[Any, Any, Any]:
        given, thrown = None, None
        while True:
            try:
                future = self.work.throw(thrown) if thrown else self.work.send(given)
            except StopIteration as done:
                return done.value
            self.awaits += 1
            if self.awaits == self.at:
                task = asyncio.current_task()
                assert task
                task.cancel()
            given, thrown = None, None
            try:
                given = yield future
            except BaseException as error:
                thrown = error


@dataclass
class Soak:
    world: World
    ends: Counter[str] = field(default_factory=Counter)
    odd: Counter[str] = field(default_factory=Counter)
    """Replies that are none of the sound ones, by kind of case."""
    escaped: Counter[str] = field(default_factory=Counter)
    """What came out besides an `Exception`."""
    raised: Counter[str] = field(default_factory=Counter)
    hung: Counter[str] = field(default_factory=Counter)
    awaits: dict[tuple[str, str], int] = field(default_factory=dict)
    slowest: float = 0.0
    done: int = 0

    async def one(self, case: Case) -> None:
        """One conversation in a task and a context of its own."""
        started = time.monotonic()
        CASES[case.number] = case
        task = asyncio.get_running_loop().create_task(self._conversation(case))
        done, _ = await asyncio.wait({task}, timeout=LONGEST)
        if not done:
            self.hung[case.name] += 1
            task.cancel()
            await asyncio.wait({task}, timeout=LONGEST)
        self.slowest = max(self.slowest, time.monotonic() - started)
        if not task.done() or task.cancelled() or task.exception():
            self.escaped[case.name] += 1
        del CASES[case.number]
        self.done += 1

    async def _conversation(self, case: Case) -> None:
        current.set(case)
        place = (case.version, case.way)
        at = (
            None if case.cancel is None else 1 + int(case.cancel * self.awaits.get(place, _TYPICAL))
        )
        running = Cancelling(WAYS[case.way](self.world, case), at)
        try:
            replies = await running
        except asyncio.CancelledError as error:
            self.ends["cancelled"] += 1
            if at is None and case.name not in self.hung:
                self.escaped[f"CancelledError: {case.name}"] += 1
            self.world.finder.look_at_error("cancellation", error)
        except Exception as error:
            self.ends["error"] += 1
            self.raised[type(error).__name__] += 1
            if not may_raise(case):
                self.odd[f"{type(error).__name__}: {case.name}"] += 1
            self.world.finder.look_at_error("error", error)
        except BaseException as error:
            self.escaped[f"{type(error).__name__}: {case.name}"] += 1
            self.world.finder.look_at_error("escaped", error)
        else:
            self.awaits[place] = running.awaits
            for reply in replies:
                end = sound(case).get(reply.strip(), "odd")
                self.ends[end] += 1
                if end == "odd":
                    self.odd[f"{reply[:100]!r}: {case.name}"] += 1
        self.world.finder.look_at_context(contextvars.copy_context())

    def tidy(self) -> None:
        """Look through what the apps keep of all conversations, and drop it."""
        for app in self.world.apps.values():
            self.world.finder.look("event cache", app.events_history_cache)
            app.events_history_cache.clear()


def may_raise(case: Case) -> bool:
    """The model itself fails, or the client hangs up: then there is no answer, and the caller is
    told so."""
    return case.part == "backend" or case.cancel is not None


def resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1])


async def soak(world: World, drawn: list[Case]) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    # The sentence encoder, if it is installed, is loaded at its first use, which may come late.
    await find_question("Hello there. How are you?")
    # The host takes events of Colang 2.x one conversation at a time; without that queue they meet
    # as in its other ways.
    llmrails.process_events_semaphore = asyncio.Semaphore(TOGETHER)
    loop.set_exception_handler(lambda _, context: world.finder.look("event loop", dict(context)))
    running = Soak(world)
    waiting: Iterator[Case] = iter(drawn)
    first: dict[str, int] = {}

    async def worker() -> None:
        for case in waiting:
            await running.one(case)

    async def watch(workers: Awaitable[Any]) -> None:
        tidied = 0
        while running.done < len(drawn) and not workers.done():  # type: ignore[attr-defined]
            await asyncio.sleep(0.5)
            if running.done - tidied >= TIDIED:
                tidied = running.done
                running.tidy()
                if not first and running.done >= WARM * len(drawn):
                    first.update(pages=resident(), threads=threading.active_count())

    started = time.monotonic()
    workers = asyncio.gather(*(worker() for _ in range(TOGETHER)))
    await asyncio.gather(workers, watch(workers))
    seconds = time.monotonic() - started
    await asyncio.sleep(3)
    running.tidy()
    tasks = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
    for app in world.apps.values():
        world.finder.look("explain", app.explain())
    return {
        "conversations": running.done,
        "kinds": len({(c.part, c.kind) for c in drawn}),
        "leaks": sum(world.finder.leaks.values()),
        "odd": sum(running.odd.values()),
        "escaped": sum(running.escaped.values()),
        "hung": sum(running.hung.values()),
        "tasks_left": len(tasks),
        "ends": dict(running.ends.most_common()),
        "raised": dict(running.raised.most_common()),
        "log_lines": world.logs.lines,
        "spans": world.spans.ended,
        "memory": round(resident() / first["pages"], 3) if first else None,
        "threads": round(threading.active_count() / first["threads"], 3) if first else None,
        "seconds": round(seconds, 1),
        "slowest": round(running.slowest, 1),
        "found": {
            "leaks": world.finder.summary(),
            "odd": dict(running.odd.most_common(10)),
            "escaped": dict(running.escaped.most_common(10)),
            "hung": dict(running.hung.most_common(10)),
            "tasks": dict(Counter(map(place_of, tasks)).most_common(10)),
        },
    }


def place_of(task: asyncio.Task[Any]) -> str:
    """Where a task waits, from the coroutine that it runs inwards."""
    waits, chain = task.get_coro(), []
    while frame := getattr(waits, "cr_frame", None):
        chain.append(
            f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}:{frame.f_lineno}"
        )
        waits = getattr(waits, "cr_await", None)
    return " > ".join(chain) or repr(type(waits))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--conversations", type=int, default=20_000, help="at most; default: all")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    drawn = cases(args.conversations, args.seed)
    finder = Finder({case.canary: case.name for case in drawn})
    with tempfile.TemporaryDirectory() as folder:
        world = World.make(Path(folder), finder)
        logging.getLogger().setLevel(logging.DEBUG)
        logging.getLogger().handlers = [world.logs]
        print(json.dumps(asyncio.run(soak(world, drawn))))


if __name__ == "__main__":
    main()
