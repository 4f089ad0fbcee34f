import asyncio

import pytest

from ttsa_guard.streaming import StreamGate, without_reasoning

ANSWER = "One is fine. Two is fine. Three is bad. Four is fine."


async def chunks(texts, *, gaps=1):
    for text in texts:
        for _ in range(gaps):
            await asyncio.sleep(0)
        yield text


def no_bad(asked):
    async def passes(text):
        asked.append(text)
        return "bad" not in text

    return passes


def streamed(gate, source):
    async def main():
        return [piece async for piece in gate.stream(source)]

    return asyncio.run(main())


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_sentences_are_shown_up_to_the_first_that_is_flagged(size):
    asked = []
    gate = StreamGate(no_bad(asked))
    pieces = streamed(
        gate, chunks([ANSWER[i : i + size] for i in range(0, len(ANSWER), size)], gaps=5)
    )
    assert (
        ("".join(pieces), gate.text) == ("One is fine. Two is fine.",) * 2
        if size < 1000
        else ("", "")
    )
    assert all(ANSWER.startswith(text) for text in asked)
    assert gate.checks == len(asked)


def test_every_check_covers_all_that_came_before():
    asked = []
    gate = StreamGate(no_bad(asked))
    assert streamed(gate, chunks(["A. ", "B. ", "C. "], gaps=9)) == ["A.", " B.", " C."]
    assert asked == ["A.", "A. B.", "A. B. C."]


def test_sentences_that_arrive_during_a_check_are_judged_together():
    asked = []

    async def slowly(text):
        asked.append(text)
        await asyncio.sleep(0.02)
        return True

    assert (
        "".join(streamed(StreamGate(slowly), chunks(["A. ", "B. ", "C. ", "D. "]))) == "A. B. C. D."
    )
    assert len(asked) <= 2


def test_the_last_sentence_waits_for_the_review():
    assert streamed(StreamGate(no_bad([])), chunks(["All of it is fine."])) == []


def test_settled_during_a_check_nothing_more_is_shown():
    async def passes(_):
        assert gate.close() == ""
        return True

    gate = StreamGate(passes)
    assert streamed(gate, chunks(["A. ", "B. "])) == []


def test_only_the_first_answer_of_a_turn_gets_what_was_shown():
    gate = StreamGate(no_bad([]))
    streamed(gate, chunks(["A. "]))
    assert [gate.close(), gate.close()] == ["A.", ""]


def test_a_source_that_fails_ends_the_stream_and_leaves_no_task():
    async def failing():
        yield "A. "
        raise RuntimeError("bad words")

    async def main():
        pieces = [piece async for piece in StreamGate(no_bad([])).stream(failing())]
        return pieces, len(asyncio.all_tasks())

    assert asyncio.run(main()) == (["A."], 1)


def test_a_stream_that_is_closed_early_stops_reading():
    async def main():
        stream = StreamGate(no_bad([])).stream(chunks(["A. "] * 100))
        first = await anext(stream)
        await stream.aclose()
        await asyncio.sleep(0)
        return first, len(asyncio.all_tasks())

    assert asyncio.run(main()) == ("A.", 1)


@pytest.mark.parametrize(
    ("text", "visible"),
    [
        ("plain <b>text</b>", "plain <b>text</b>"),
        ("<think>bad</think>\nfine", "fine"),
        ("<think>bad", ""),
        ("a <think>bad. </think>b", "a b"),
    ],
)
def test_reasoning_is_left_out(text, visible):
    assert without_reasoning(text) == visible
