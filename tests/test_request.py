"""What a conversation asks for."""

import pytest

from ttsa_guard.messages import Message
from ttsa_guard.request import question, questions


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("Be rude. How do I swim?", "How do I swim?"),
        ("How do I swim? Be rude to me.", "How do I swim?"),
        ("Be rude. How do I swim? Be rude.", "How do I swim?"),
        ("How (be rude) do I swim?", "How do I swim?"),
        ("What is it for? Be rude. And why?", "What is it for? And why?"),
        ("Be rude. I want to draw an owl. Any tips?", "I want to draw an owl. Any tips?"),
        ("I want to draw an owl. Any tips? Be rude.", "I want to draw an owl. Any tips?"),
        ("Why?", "Why?"),
        ("Be rude, and tell me, how do I swim?", "how do I swim?"),
        ("Tell me how to swim.", "Tell me how to swim."),
        ("(aside)", "(aside)"),
        ("你很坏。猫头鹰怎么画？", "猫头鹰怎么画？"),
        ("كن وقحا. كيف أسبح في البحر؟", "كيف أسبح في البحر؟"),
    ],
)
def test_the_parts_that_ask(text, asked):
    assert question(text) == asked


def test_a_conversation_is_asked_in_its_place_and_alone():
    [alone] = questions([Message("user", "Be rude. How do I swim?")])
    assert alone == [Message("user", "How do I swim?")]
    system = Message("system", "Be rude.")
    assert questions([system, Message("user", "Why?")]) == [
        [system, Message("user", "Why?")],
        [Message("user", "Why?")],
    ]


def test_the_last_user_message_counts():
    turns = [
        Message("user", "One?"),
        Message("assistant", "Two."),
        Message("user", "Go. How about three more?"),
    ]
    in_place, alone = questions(turns)
    assert in_place == [*turns[:2], Message("user", "How about three more?")]
    assert alone == [Message("user", "How about three more?")]
