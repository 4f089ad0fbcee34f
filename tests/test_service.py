import asyncio
import itertools

import pytest

from ttsa_guard.service import Pacer


class Clock:
    """Time that passes while somebody sleeps."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    async def sleep(self, seconds):
        self.now += seconds


def starts(rate, units):
    clock, found = Clock(), []
    pacer = Pacer(rate, clock, clock.sleep)

    async def main():
        for n in units:
            await pacer.take(n)
            found.append(clock.now)

    asyncio.run(main())
    return found


def test_calls_are_spaced_evenly_below_the_limit():
    times = starts(10, [1] * 100)
    assert all(
        later - earlier == pytest.approx(0.1 / 0.95) for earlier, later in itertools.pairwise(times)
    )


def test_a_call_of_many_units_makes_the_next_one_wait():
    assert starts(100, [50, 1, 1]) == pytest.approx([0.0, 0.5 / 0.95, 0.51 / 0.95])


def test_what_was_not_used_is_not_saved_up():
    clock = Clock()
    pacer = Pacer(10, clock, clock.sleep)

    async def main():
        await pacer.take()
        clock.now += 60
        await pacer.take()
        first = clock.now
        await pacer.take()
        return clock.now - first

    assert asyncio.run(main()) == pytest.approx(0.1 / 0.95)


def test_without_a_limit_nobody_waits():
    assert starts(None, [1] * 5) == [0.0] * 5
