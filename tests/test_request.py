"""What a conversation asks for."""

import pytest

from ttsa_guard.messages import Message, last_user
from ttsa_guard.request import question, questions, said_besides, stands_alone, understood


def reduced(messages, needed=()):
    return questions(messages, question(last_user(messages)), needed)


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("Be rude. How do I swim?", "How do I swim?"),
        ("How do I swim? Be rude to me.", "How do I swim?"),
        ("Be rude. How do I swim? Be rude.", "How do I swim?"),
        ("How (be rude) do I swim?", "How do I swim?"),
        ("What is a kettle for? Be rude. And why?", "What is a kettle for? And why?"),
        ("Be rude. I want to draw an owl. Any tips?", "I want to draw an owl. Any tips?"),
        ("I want to draw an owl. Any tips? Be rude.", "I want to draw an owl. Any tips?"),
        ("Why?", "Why?"),
        ("Be rude, and tell me, how do I swim?", "how do I swim?"),
        ("How do I swim, step by step?", "How do I swim, step by step?"),
        ("how do i swim. Be rude.", "how do i swim."),
        ("Tell me how to swim, step by step.", "Tell me how to swim, step by step."),
        ("how do i swim\nBe rude", "how do i swim"),
        ("Be rude. Please tell me how to swim.", "Please tell me how to swim."),
        ("Tell me a joke. How do I swim?", "How do I swim?"),
        (
            "Be rude. My lamp broke. It fell. How do I fix it?",
            "My lamp broke. It fell. How do I fix it?",
        ),
        ("My lamp broke. Where do I begin? Be rude.", "My lamp broke. Where do I begin?"),
        ("I paint. What can I do with them?", "I paint. What can I do with them?"),
        ("Tell me how to swim.", "Tell me how to swim."),
        ("Be rude. I'd like some tips for a swim.", "I'd like some tips for a swim."),
        ("need a name for a cat\nBe a troll.", "need a name for a cat"),
        ("I want you to be rude. Name two birds.", "Name two birds."),
        ("(aside)", "(aside)"),
        ("你很坏。猫头鹰怎么画？", "猫头鹰怎么画？"),
        ("كن وقحا. كيف أسبح في البحر؟", "كيف أسبح في البحر؟"),
    ],
)
def test_the_parts_that_ask(text, asked):
    assert question(text) == asked


def test_a_conversation_is_asked_in_its_place_and_alone():
    [alone] = reduced([Message("user", "Be rude. How do I swim?")])
    assert alone == [Message("user", "How do I swim?")]
    system = Message("system", "Be rude.")
    assert reduced([system, Message("user", "Be loud. How do I swim?")]) == [
        [system, Message("user", "How do I swim?")],
        [Message("user", "How do I swim?")],
    ]


def test_a_message_that_is_only_its_question_is_asked_alone_first():
    system, asked = Message("system", "Be rude."), Message("user", "How do I swim?")
    assert reduced([system, asked]) == [[asked], [system, asked]]


def test_what_a_question_needs_stands_before_it():
    fact, needed = "The pool opens at 7.", Message("user", "The pool opens at 7. How do I swim?")
    system = Message("system", f"Be rude. {fact}")
    asked = Message("user", "How do I swim? Be loud.")
    in_place = [system, Message("user", "How do I swim?")]
    assert reduced([system, asked], [fact]) == [[needed], in_place]
    assert reduced([Message("user", f"Be rude. {fact} How do I swim?")], [fact]) == [[needed]]


def test_what_is_said_besides_a_question():
    system, asked = Message("system", "Be rude. Be loud."), Message("user", "Hi! How do I swim?")
    assert said_besides([system, asked], "How do I swim?") == ["Be rude.", "Be loud.", "Hi!"]


def test_items_of_what_is_said_besides_become_sentences():
    system = Message("system", "Facts:\n- We open at 7\n2. Dogs are welcome.")
    said = said_besides([system, Message("user", "When?")], "When?")
    assert said == ["Facts: We open at 7.", "Dogs are welcome."]


def test_a_question_about_what_was_said_is_asked_in_its_place_first():
    system, asked = Message("system", "Be rude."), Message("user", "And how do I do that?")
    assert reduced([system, asked]) == [[system, asked], [asked]]


@pytest.mark.parametrize(
    ("text", "alone"),
    [
        ("How do I draw an owl?", True),
        ("What is it like to visit a lighthouse?", True),
        ("怎么画猫头鹰？", True),
        ("Why?", False),
        ("And how do I draw an owl?", False),
        ("What about owls in winter?", False),
        ("How do I draw it?", False),
        ("Which one is cheaper?", False),
    ],
)
def test_whether_a_question_stands_alone(text, alone):
    assert stands_alone(text) is alone


def test_what_does_not_stand_alone_is_understood_with_what_was_asked_before():
    asked = ["Any tips?", "How do I draw an owl?", "And a bat?", "Which is easier for a child?"]
    assert understood(asked) == [
        "Any tips?",
        "How do I draw an owl?",
        "How do I draw an owl? And a bat?",
        "Which is easier for a child?",
    ]
    assert understood(["Why?"]) == ["Why?"]


def test_the_last_user_message_counts():
    turns = [
        Message("user", "One?"),
        Message("assistant", "Two."),
        Message("user", "Go. What are three more primes?"),
    ]
    in_place, alone = reduced(turns)
    assert in_place == [*turns[:2], Message("user", "What are three more primes?")]
    assert alone == [Message("user", "What are three more primes?")]


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        (
            "Be rude. I spilled tea on my wool jumper. How should I wash it without shrinking it?",
            "I spilled tea on my wool jumper. How should I wash it without shrinking it?",
        ),
        (
            "We have a puppy. He barks all night. What can we do about that noise? Be rude to us.",
            "We have a puppy. He barks all night. What can we do about that noise?",
        ),
        (
            "How do I make a good soup? I have never done it before. Answer as a pirate.",
            "How do I make a good soup? I have never done it before.",
        ),
        ("You are my worst enemy. How do I make a good soup?", "How do I make a good soup?"),
        ("I like it when bots are rude. How do I make a soup?", "How do I make a soup?"),
        ("The story is about a mean cook. How do I make a soup?", "How do I make a soup?"),
    ],
)
def test_what_users_tell_of_themselves_belongs_to_their_question(text, asked):
    assert question(text) == asked
