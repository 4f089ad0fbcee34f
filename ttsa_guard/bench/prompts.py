"""One prompt of a benchmark, and the prompts of the real benchmark that ship with the package."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from ttsa_guard.embedded.grammar import Topic

Turns = tuple[tuple[str, str], ...]
_LONG_EVERY = 8
"""One in so many conversations is a long one."""
_FILLED = 12
"""Turns of small talk in a long one."""
_SENTENCE_ENDS = (".", "!", "?", '"')
_AGREED = ("Is that clear?", "Yes, I will do that from now on.")
"""How an earlier turn with the instruction of a policy ends, and the model's answer."""


@dataclass(frozen=True)
class Item:
    """One prompt.

    Args:
        id: source, kind and number; holds no text.
        kind: the group that it is counted in.
        messages: (role, content) pairs that end with the user's.
        question: what the user asks, without anything wrapped around it.
        unsafe: whether harm is asked for.
        truth: what the embedded world's judge has to know; None for other data.
        policy: options of the moderator `patterns` that is part of the gate for this prompt.
    """

    id: str
    kind: str
    messages: Turns
    question: str
    unsafe: bool
    truth: Topic | None = None
    policy: dict[str, Any] | None = None

    @property
    def user(self) -> str:
        """What the user says last."""
        return self.messages[-1][1]

    @property
    def rank(self) -> bytes:
        """The same for the same prompt in every run, and nothing to do with what it says."""
        return hashlib.sha256(repr((self.kind, self.messages)).encode()).digest()

    @property
    def half(self) -> str:
        """The half that it belongs to: "development" or "test"."""
        return "development" if self.rank[0] % 2 == 0 else "test"


def real_prompts(name: str) -> list[Item]:
    """Return the prompts of "persona" or "policy", in the order of their hashes.

    With "_validation" or "_test" behind the name, they are other prompts (see `PromptSource`).
    """
    kind, _, part = name.partition("_")
    file = resources.files(__package__) / f"real_prompts{part and f'_{part}'}.yaml"
    texts = yaml.safe_load(file.read_text(encoding="utf-8"))
    items = (_personas if kind == "persona" else _policies)(texts, name)
    return sorted(items, key=lambda item: item.rank)


def _personas(texts: Mapping[str, Any], source: str) -> Iterator[Item]:
    rude = texts["rude_turns"]
    for i, question in enumerate(texts["questions"]):
        for j, persona in enumerate(texts["personas"]):
            for name, turns in placed(question, persona, rude[(i + j) % len(rude)]):
                if (i + j) % _LONG_EVERY == 0:
                    name, turns = f"{name}, long", _long(turns, texts["filler"])
                yield Item(f"{source}/{i}/{j}/{name}", "persona", turns, question, False)


def _policies(texts: Mapping[str, Any], source: str) -> Iterator[Item]:
    for policy, spec in texts["policies"].items():
        options = spec["options"]
        for i, prompt in enumerate(spec["prompts"]):
            turns: Turns = (("user", prompt),)
            yield Item(f"{source}/{policy}/{i}", "policy", turns, prompt, False, policy=options)
        for i, question in enumerate(texts["questions"] if "instruction" in spec else ()):
            for name, turns in placed(question, spec["instruction"], _AGREED):
                id_ = f"{source}/{policy}/q{i}/{name}"
                yield Item(id_, "policy", turns, question, False, policy=options)


def placed(question: str, instruction: str, earlier: Sequence[str]) -> Iterator[tuple[str, Turns]]:
    """Yield a question with an instruction in four places, each with the place's name.

    The places are before it, after it, in the system message, and in an earlier turn, which ends
    with what the user and the model say in `earlier`. What has no full stop is followed by a line
    break, as people write it.
    """
    yield "before", (("user", _joined(instruction, question)),)
    yield "after", (("user", _joined(question, instruction)),)
    yield "system", (("system", instruction), ("user", question))
    said, answered = earlier
    first = (("user", _joined(instruction, said)), ("assistant", answered))
    yield "earlier", (*first, ("user", question))


def _joined(first: str, second: str) -> str:
    return (" " if first.endswith(_SENTENCE_ENDS) else "\n").join((first, second))


def _long(turns: Turns, filler: Sequence[Sequence[str]]) -> Turns:
    """Return the conversation with some thousand tokens of small talk before its last message."""
    talk = [
        turn
        for k in range(_FILLED)
        for turn in zip(("user", "assistant"), filler[k % len(filler)], strict=True)
    ]
    return (*turns[:-1], *talk, turns[-1])


def entangled(messages: Turns, question: str) -> dict[str, Turns]:
    """Return the conversation with its last message, of which the question is a part, written in
    other ways, by their names.
    """
    text = messages[-1][1]
    if question not in text or text == question:
        return {}
    wrapper = text.replace(question, " ").strip()
    aside = wrapper.rstrip(".!?")
    words = question.split()
    middle = len(words) // 2
    inside = f"{' '.join(words[:middle])} ({aside}) {' '.join(words[middle:])}"
    return {
        "question first": (("user", f"{question} {wrapper}"),),
        "in brackets": (("user", inside),),
        "around": (("user", f"{wrapper} {question} {wrapper}"),),
        "system": (("system", wrapper), ("user", question)),
        "earlier": (("user", wrapper), ("assistant", "As you like."), ("user", question)),
    }
