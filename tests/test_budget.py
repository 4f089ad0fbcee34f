import asyncio
from contextlib import suppress

import pytest

from ttsa_guard.budget import Budget, Usage, within
from ttsa_guard.errors import BudgetError, ServiceError
from ttsa_guard.testing import FakeClock


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def usage(clock):
    return Usage(Budget(seconds=10, generations=4, moderation_calls=2), clock)


@pytest.mark.parametrize("resource", ["generations", "moderation_calls"])
def test_a_limit_can_be_reached_but_not_overrun(usage, resource):
    limit = getattr(usage.budget, resource)
    usage.charge(**{resource: limit})
    with pytest.raises(BudgetError) as caught:
        usage.charge(**{resource: 1})
    assert (caught.value.resource, caught.value.limit, caught.value.wanted) == (
        resource,
        limit,
        limit + 1,
    )
    assert getattr(usage, resource) == limit


def test_nothing_is_taken_when_one_of_two_would_overrun(usage):
    with pytest.raises(
        BudgetError, match=r"moderation_calls would reach 3 of 2\n.*raise budget.moderation_calls"
    ):
        usage.charge(generations=1, moderation_calls=3)
    assert (usage.generations, usage.moderation_calls, usage.decode_passes) == (0, 0, 0)


def test_decode_passes_can_be_limited(clock):
    usage = Usage(Budget(decode_passes=1), clock)
    usage.charge(generations=8)
    usage.charge(moderation_calls=1)
    with pytest.raises(
        BudgetError, match=r"decode_passes would reach 2 of 1\n.*raise budget.decode_passes"
    ):
        usage.charge(generations=1)
    assert (usage.generations, usage.decode_passes) == (8, 1)


def test_the_deadline(usage, clock):
    clock.advance(10)
    usage.charge(generations=1)
    assert usage.seconds_left == 0
    clock.advance(0.5)
    with pytest.raises(BudgetError, match=r"seconds would reach 10\.5 of 10"):
        usage.charge()
    assert usage.seconds_left == 0


def test_what_is_left(usage, clock):
    clock.advance(3)
    usage.charge(generations=3)
    usage.charge(moderation_calls=1)
    assert (usage.seconds, usage.seconds_left, usage.generations_left, usage.decode_passes) == (
        3,
        7,
        1,
        1,
    )


def test_work_within_its_time():
    assert asyncio.run(within(None, asyncio.sleep(0, "done"))) == "done"


def test_work_that_takes_too_long_is_cancelled():
    async def main():
        with pytest.raises(asyncio.TimeoutError):
            await within(0.01, asyncio.sleep(60))
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_work_that_ignores_its_cancellation_is_left_behind(monkeypatch, caplog):
    monkeypatch.setattr("ttsa_guard.budget._GRACE", 0.01)

    async def stubborn():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.05)
            raise ValueError("quotes a text") from None

    async def main():
        with pytest.raises(asyncio.TimeoutError):
            await within(0.01, stubborn())
        await asyncio.sleep(0.1)

    asyncio.run(main())
    assert "quotes" not in caplog.text


def test_work_whose_part_ignored_the_cancellation_does_not_go_on(monkeypatch):
    monkeypatch.setattr("ttsa_guard.budget._GRACE", 0.01)

    async def work():
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        await asyncio.sleep(60)

    async def main():
        with pytest.raises(asyncio.TimeoutError):
            await within(0.01, work())
        await asyncio.sleep(0.1)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_a_cancellation_from_inside_is_an_error_of_the_work():
    async def work():
        raise asyncio.CancelledError

    with pytest.raises(ServiceError):
        asyncio.run(within(1, work()))


def test_a_cancellation_from_outside_propagates_and_ends_the_work():
    async def main():
        ended = asyncio.Event()

        async def work():
            try:
                await asyncio.sleep(60)
            finally:
                ended.set()

        task = asyncio.create_task(within(None, work()))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()

    asyncio.run(main())
