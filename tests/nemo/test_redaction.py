"""Nothing that is withheld survives in records of any shape."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nemoguardrails.actions.rail_outcome import RailOutcome, TransformTarget
from nemoguardrails.colang.v2_x.runtime.flows import Action, InternalEvent
from nemoguardrails.logging.explain import LLMCallInfo
from pydantic import BaseModel

from ttsa_guard.nemo.redaction import MARK, Redactor
from ttsa_guard.quotes import WINDOW

SECRET = (
    'First take the Blue kettle, then the "other" one: mix both — naïvely — with 3 spoons of zebra'
    " dust."
)
OTHER = "What would you like to know about the garden of my grandmother? It has roses, and a gate."


class Point(NamedTuple):
    name: str
    text: str


@dataclass(frozen=True)
class Frozen:
    note: Any


class Strange:
    """A record of a kind that nobody knows."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return f"Strange({self.text!r})"


def words(text: str) -> str:
    """The words of a text, written independently of the product."""
    text = re.sub(
        r"\\+(?:u([0-9a-f]{4})|[nrt])", lambda m: chr(int(m[1], 16)) if m[1] else " ", text
    )
    return " ".join("".join(c if c.isalnum() else " " for c in text).split()).casefold()


def leaves(value: Any) -> Iterator[str]:
    """Every text in a record."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, bytes):
        yield value.decode("utf-8", "replace")
    elif isinstance(value, Mapping):
        for pair in value.items():
            yield from leaves(list(pair))
    elif isinstance(value, list | tuple | set | frozenset | deque):
        for item in value:
            yield from leaves(item)
    elif isinstance(value, BaseModel):
        yield from leaves(dict(value))
    elif is_dataclass(value):
        yield from leaves([getattr(value, f.name) for f in fields(value)])
    elif isinstance(value, BaseException):
        yield from leaves(value.args)
    elif isinstance(value, Action):
        yield from leaves(vars(value))
    elif isinstance(value, Strange):
        yield value.text


def survives(value: Any, secret: str = SECRET) -> bool:
    parts = {words(secret)[i : i + WINDOW] for i in range(len(words(secret)) - WINDOW + 1)}
    return any(part in words(leaf) for leaf in leaves(value) for part in parts)


PLAIN = st.sampled_from([OTHER, "", "ok", MARK, "7", "BotMessage"]) | st.text(
    "abc \n\\\"'é", max_size=20
)
CHANGES = (
    str,
    str.upper,
    lambda s: s.replace(" ", "\n\t "),
    lambda s: s.replace(" ", " \\n"),
    repr,
    json.dumps,
    lambda s: json.dumps(json.dumps(s)),
    lambda s: s[11:71],
    lambda s: "".join(c for c in s if c.isalnum() or c == " "),
    lambda s: f'  "{s}"\nuser asks',
)


@st.composite
def quotes(draw: Any) -> str:
    """The secret or a piece of it, changed in ways that a reader looks through, inside something
    else."""
    return str(draw(PLAIN)) + " " + draw(st.sampled_from(CHANGES))(SECRET) + " " + str(draw(PLAIN))


def shapes(inner: Any) -> Any:
    texts = quotes() | PLAIN
    return (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["text", "data", "return_value", "script"]) | texts, inner, max_size=4
        )
        | st.builds(lambda x: deque([x]), inner)
        | st.builds(lambda x: (x, 1), inner)
        | st.builds(Point, texts, texts)
        | st.builds(Frozen, inner)
        | st.builds(lambda x: MappingProxyType({"a": x}), inner)
        | st.builds(lambda x: RailOutcome.block(reason=x, metadata={"why": [x]}), texts)
        | st.builds(lambda x: RailOutcome.transform([(TransformTarget.BOT_MESSAGE, x)]), texts)
        | st.builds(
            lambda a, b: LLMCallInfo(
                prompt=a, completion=b, raw_response={"choices": [{"text": a}]}
            ),
            texts,
            texts,
        )
        | st.builds(lambda x: InternalEvent("StartFlow", {"text": x}), inner)
        | st.builds(lambda x: Action("UtteranceBotAction", {"script": x}), inner)
        | st.builds(lambda x: ValueError(x, 3), texts)
        | st.builds(Strange, texts)
        | st.builds(lambda x: {x, "b"}, texts)
    )


RECORDS = st.recursive(
    quotes() | PLAIN | st.none() | st.booleans() | st.builds(str.encode, quotes()),
    shapes,
    max_leaves=12,
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(RECORDS)
def test_nothing_survives_in_records_of_any_shape(record: Any) -> None:
    assert not survives(Redactor([SECRET]).clean([record]))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.recursive(PLAIN, shapes, max_leaves=12).filter(lambda record: not survives(record)))
def test_what_quotes_nothing_stays(record: Any) -> None:
    before = sorted(leaves(record))  # sets have an order of their own
    assert sorted(leaves(Redactor([SECRET]).clean([record]))) == before


def test_the_search_for_survivors_finds_them() -> None:
    assert all(survives([change(SECRET)]) for change in CHANGES)
    assert not survives([OTHER, SECRET[: WINDOW // 2]])


def test_records_are_changed_in_place() -> None:
    event = {"type": "BotMessage", "text": SECRET, "data": [SECRET]}
    call = LLMCallInfo(completion=SECRET)
    outcome = RailOutcome.block(reason=SECRET)
    Redactor([SECRET]).clean([event, {"calls": [call]}, (outcome,)])
    assert event == {"type": "BotMessage", "text": MARK, "data": [MARK]}
    assert call.completion == outcome.reason == MARK


def test_only_the_quote_is_withheld() -> None:
    assert (
        Redactor([SECRET]).text(f"Question: {OTHER}\nAnswer: {SECRET}\nSafe?")
        == f"Question: {OTHER}\nAnswer: {MARK}.\nSafe?"
    )


def test_what_may_be_read_stays() -> None:
    """The answer that left shares a sentence with the one that did not; the words of the user are
    in both."""
    shared = "You asked me about the old kettle in the kitchen of your aunt."
    left = f"{shared} Clean it with vinegar."
    redactor = Redactor([f"{shared} {SECRET}"], [left])
    assert redactor.text(left) == left
    assert redactor.text(f"{shared} {SECRET}") == MARK
    assert redactor.text(f"He said: {shared}") == f"He said: {shared}"
    assert not survives([redactor.text(f"They wrote {SECRET}")])


@pytest.mark.parametrize(
    ("said", "shown"), [("bad", MARK), (" Bad! ", MARK), ("Is it bad?", "Is it bad?")]
)
def test_a_short_text_is_withheld_where_it_is_all_there_is(said: str, shown: str) -> None:
    assert Redactor(["bad"]).text(said) == shown


def test_the_hosts_own_words_stay_whatever_a_model_says() -> None:
    event = {"type": "BotMessage", "text": "BotMessage", "role": "user"}
    Redactor(["BotMessage", "user"]).clean(event)
    assert event == {"type": "BotMessage", "text": MARK, "role": "user"}


def test_a_record_that_cannot_be_read_is_not_handed_out() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError(SECRET)

    assert Redactor([SECRET]).clean([Broken()]) == [MARK]


def test_records_that_hold_themselves() -> None:
    record: dict[str, Any] = {"text": SECRET}
    record["self"] = record
    Redactor([SECRET]).clean(record)
    assert record["text"] == MARK
