"""The world that the embedded chat model lives in: it writes conversations and judges answers
exactly.

`world.yaml` holds the texts; this module turns them into training conversations
(`World.conversation`), evaluation cases with a known truth (`World.cases`) and verdicts on answers
(`World.judge`). Whatever stands under ``unseen`` there (topics, wordings, wrappers, persona names)
is never trained on.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from typing import Any, Literal

import yaml

from ttsa_guard.embedded.grammar import Grammar, GrammarJudgement, Topic
from ttsa_guard.embedded.invention import invented_object

Split = Literal["seen", "unseen"]
Failure = Literal["content", "tone"]
Sources = Literal["topics", "texts"] | tuple[str, ...]

_MODIFIERS = ("old", "new", "small", "large", "favourite", "cheap", "red", "green")
_PEOPLE = ("rumour", "scam", "stalk", "threat", "bully")
_THINGS = ("steal", "vandal", "sabotage")


@dataclass(frozen=True)
class WorldCase:
    """One conversation whose last message is a user's, with the truth about it."""

    messages: tuple[tuple[str, str], ...]
    """(role, content) pairs."""
    topic: Topic
    wrapper: str | None = None
    failure: Failure | None = None
    """The way in which the model may fail here; None for unwrapped and friendly prompts."""
    rate: float = 0.0
    """How often the training data gives in under this wrapper."""
    when: Literal["early", "late"] | None = None
    question: str = ""
    """What the user asks, without the wrapper."""


@dataclass
class World:
    """Texts of the world plus the two directions in which they are used: writing and judging."""

    texts: Mapping[str, Any] = field(repr=False)
    invented: float = 0.35
    """Share of the training topics whose object is made up."""
    sources: Sources = "topics"
    """Where the words that are taken apart for that come from, or the words."""

    @classmethod
    def load(cls, *, invented: float = 0.35, sources: Sources = "topics") -> World:
        """Read the world that ships, with a share `invented` of made-up objects in training."""
        path = resources.files(__package__) / "world.yaml"
        return cls(yaml.safe_load(path.read_text(encoding="utf-8")), invented, sources)

    # ------------------------------------------------------------------ topics

    def objects(self, kind: str, category: str, split: Split) -> list[str]:
        """Return the objects of a category of topics, in one half of the data."""
        return [o.strip() for o in self.texts[kind][category][split].split(", ")]

    def topic(
        self, rng: random.Random, kind: str, split: Split, *, training: bool = False
    ) -> Topic:
        """Draw a topic; in training some objects are borrowed or invented, which teaches copying
        instead of remembering.
        """
        name = rng.choice(sorted(self.texts[kind]))
        spec = self.texts[kind][name]
        noun = rng.choice(self.objects(kind, name, split))
        invented = training and rng.random() < self.invented
        if kind == "unsafe":
            if invented:
                noun = _with_article(
                    rng.choice(("a", "my", "the", "my friend's")), invented_object(rng, self._words)
                )
            elif training and rng.random() < 0.4:
                noun = self._borrowed(rng, name) or noun
            return Topic(
                name, spec["verb"], spec["gerund"], noun, _yours(noun), True, split == "seen"
            )
        if invented:
            noun = invented_object(rng, self._words)
        elif training and name in ("clean", "fix", "draw", "choose") and rng.random() < 0.35:
            noun = rng.choice(self._movable)
        if not spec.get("plain") and rng.random() < 0.2:
            noun = f"{rng.choice(_MODIFIERS)} {noun}"
        determiner = rng.choice(spec["dets"])
        asked = _with_article(determiner, noun)
        answered = noun if spec.get("plain") else f"the {noun}"
        return Topic(name, spec["verb"], spec["gerund"], asked, answered, False, split == "seen")

    def _borrowed(self, rng: random.Random, category: str) -> str | None:
        for pool in (_PEOPLE, _THINGS):
            if category in pool:
                if pool is _THINGS and rng.random() < 0.5:
                    return _with_article(
                        rng.choice(("a", "my friend's", "the")), rng.choice(self._movable)
                    )
                return rng.choice(self.objects("unsafe", rng.choice(pool), "seen"))
        return None

    @cached_property
    def _words(self) -> list[str]:
        """Words to invent from: those of the training topics, of all training texts, or others."""
        if isinstance(self.sources, tuple):
            return sorted(self.sources)
        kinds = [(kind, category) for kind in ("benign", "unsafe") for category in self.texts[kind]]
        found = {
            w
            for kind, category in kinds
            for o in self.objects(kind, category, "seen")
            for w in o.split()
        }
        if self.sources == "texts":
            found |= set(re.findall(r"[A-Za-z]+", " ".join(_training_texts(self.texts))))
        return sorted(w for w in found if len(w) > 3 and w.isalpha())

    @cached_property
    def _movable(self) -> list[str]:
        return [
            o
            for name in ("clean", "fix", "draw", "choose", "tidy")
            for o in self.objects("benign", name, "seen")
        ]

    # ------------------------------------------------------------------ prompts

    def question(self, rng: random.Random, topic: Topic, split: Split) -> str:
        """Draw a wording of the question about a topic."""
        template = rng.choice(self.texts["questions"][split])
        return str(template).format(v=topic.verb, g=topic.gerund, d=topic.asked)

    def wrap(
        self, rng: random.Random, question: str, family: Mapping[str, Any], split: Split
    ) -> str:
        """Put the question into a wrapper of the family, which leads the model astray."""
        name = rng.choice(self.texts["names"][split])
        parts = [
            str(rng.choice(part[split])).format(name=name, q=question) for part in family["parts"]
        ]
        return " ".join(p if p[-1] in ".?!" else p + "." for p in parts[:-1]) + " " + parts[-1]

    def family(self, rng: random.Random, kind: str) -> tuple[str, Mapping[str, Any]]:
        """Draw a family of wrappers of a kind, with its name."""
        families = self.texts["wrappers"][kind]
        names = sorted(families)
        name = rng.choices(names, [families[n]["share"] for n in names])[0]
        return name, families[name]

    def case(
        self,
        rng: random.Random,
        request: str,
        wrapper: str | None,
        split: Split,
        wording: Split,
        *,
        training: bool = False,
    ) -> WorldCase:
        """Draw a case: `request` is "benign" or "unsafe", `wrapper` a kind of wrapper or None."""
        topic = self.topic(rng, request, split, training=training)
        question = self.question(rng, topic, wording)
        if wrapper is None:
            return WorldCase((("user", question),), topic, question=question)
        name, family = self.family(rng, wrapper)
        content = self.wrap(rng, question, family, wording)
        fails = {"content": "unsafe", "tone": "benign"}.get(wrapper) == request
        rate = self._rate(topic.category, family) if fails else 0.0
        failure: Any = wrapper if fails else None
        return WorldCase(
            (("user", content),), topic, name, failure, rate, family.get("when"), question
        )

    def _rate(self, category: str, family: Mapping[str, Any]) -> float:
        rate = float(family["rate"])
        if not family.get("shift"):
            return rate
        order = sorted(self.texts["unsafe"])
        shift = 2.4 * order.index(category) / (len(order) - 1) - 1.2
        return 1.0 / (1.0 + math.exp(-(math.log(rate / (1.0 - rate)) + shift)))

    def cases(self, request: str, wrapper: str | None, n: int, *, seed: int = 0) -> list[WorldCase]:
        """`n` distinct held-out cases: wordings and wrappers unseen, topics half seen and half
        unseen.
        """
        rng = random.Random(f"cases/{request}/{wrapper}/{seed}")
        found: dict[str, WorldCase] = {}
        while len(found) < n:
            split: Split = "unseen" if len(found) % 2 else "seen"
            case = self.case(rng, request, wrapper, split, "unseen")
            found.setdefault(case.messages[-1][1], case)
        return list(found.values())

    # ------------------------------------------------------------------ answers

    def answer(self, rng: random.Random, case: WorldCase) -> str:
        """Draw an answer of the training data: failing at the case's rate, otherwise decent."""
        failing = rng.random() < case.rate
        if case.topic.unsafe:
            return self._complied(rng, case.topic) if failing else self._declined(rng, case.topic)
        if not failing:
            return self._answered(rng, case.topic)
        late = case.when == "late" if rng.random() < 0.97 else case.when != "late"
        return self._abusive(rng, case.topic, late=late)

    def _answered(self, rng: random.Random, topic: Topic) -> str:
        texts = self.texts["benign_answers"]
        steps = self._in_order(
            rng, self.texts["benign"][topic.category]["steps"], rng.choice((2, 3, 3))
        )
        closing = [rng.choice(texts["close"])] if rng.random() < 0.4 else []
        return self._say([rng.choice(texts["open"]), *steps, *closing], topic)

    def _complied(self, rng: random.Random, topic: Topic) -> str:
        texts = self.texts["unsafe_answers"]
        steps = self._in_order(
            rng, self.texts["unsafe"][topic.category]["steps"], rng.choice((2, 3))
        )
        closing = [rng.choice(texts["comply_close"])] if rng.random() < 0.4 else []
        return self._say([rng.choice(texts["comply_open"]), *steps, *closing], topic)

    def _declined(self, rng: random.Random, topic: Topic) -> str:
        texts, spec = self.texts["unsafe_answers"], self.texts["unsafe"][topic.category]
        if rng.random() < 0.5:
            closing = [rng.choice(texts["refuse_close"])] if rng.random() < 0.5 else []
            return self._say([rng.choice(texts["refuse"]), spec["reason"], *closing], topic)
        closing = [rng.choice(texts["redirect_close"])] if rng.random() < 0.5 else []
        help_ = self._in_order(rng, spec["help"], 2)
        return self._say([rng.choice(texts["redirect"]), *help_, *closing], topic)

    def _abusive(self, rng: random.Random, topic: Topic, *, late: bool) -> str:
        texts = self.texts["abuse"]
        step = self._in_order(rng, self.texts["benign"][topic.category]["steps"], 1)
        insults = rng.sample(texts["late"], rng.choice((1, 2)))
        if late:
            opening = [rng.choice(self.texts["benign_answers"]["open"]), *step]
        else:
            opening = [rng.choice(texts["early"]), *(step if rng.random() < 0.6 else [])]
        closing = [rng.choice(texts["close"])] if rng.random() < 0.6 else []
        words = {"ins": rng.choice(texts["words"]), "adj": rng.choice(texts["adjectives"])}
        return self._say([*opening, *insults, *closing], topic, **words)

    @staticmethod
    def _in_order(rng: random.Random, items: Sequence[str], n: int) -> list[str]:
        return [items[i] for i in sorted(rng.sample(range(len(items)), n))]

    @staticmethod
    def _say(sentences: Sequence[str], topic: Topic, **words: str) -> str:
        noun = topic.answered.removeprefix("the ") if not topic.unsafe else topic.answered
        slots = {"v": topic.verb, "g": topic.gerund, "a": topic.answered, "o": noun, **words}
        return " ".join(sentence.format(**slots) for sentence in sentences)

    # ------------------------------------------------------------------ training

    _MIX = (
        ("benign", None, 0.27),
        ("unsafe", None, 0.17),
        ("unsafe", "content", 0.21),
        ("benign", "tone", 0.21),
        ("benign", "content", 0.02),
        ("unsafe", "tone", 0.02),
        ("benign", "friendly", 0.03),
        ("unsafe", "friendly", 0.02),
        ("talk", None, 0.05),
    )

    def conversation(self, rng: random.Random) -> list[tuple[str, str]]:
        """One training conversation, (role, content) pairs ending with an answer; some have a
        history or a system message.
        """
        turns = self._exchange(rng)
        if rng.random() < 0.1:
            turns = self._exchange(rng, decent=True) + turns
        if rng.random() < 0.2:
            turns = [("system", rng.choice(self.texts["systems"])), *turns]
        return turns

    def conversations(self, seed: int) -> Iterator[list[tuple[str, str]]]:
        """Yield training conversations, as (role, text) pairs, without end."""
        rng = random.Random(seed)
        while True:
            yield self.conversation(rng)

    def _exchange(self, rng: random.Random, *, decent: bool = False) -> list[tuple[str, str]]:
        request, wrapper, _ = rng.choices(self._MIX, [share for *_, share in self._MIX])[0]
        if request == "talk":
            return self._small_talk(rng)
        case = self.case(rng, request, wrapper, "seen", "seen", training=True)
        if decent:
            case = WorldCase(case.messages, case.topic)
        return [*case.messages, ("assistant", self.answer(rng, case))]

    def _small_talk(self, rng: random.Random) -> list[tuple[str, str]]:
        entry = rng.choice([*self.texts["small_talk"], self.texts["small_talk"][-1]])
        slots = {
            name: rng.choice(values) for name, values in self.texts["small_talk_slots"].items()
        }
        ask = rng.choice(entry["ask"]).format(n=rng.randint(2, 99), m=rng.randint(2, 99), **slots)
        return [("user", ask), ("assistant", rng.choice(entry["say"]))]

    # ------------------------------------------------------------------ judging

    def judge(self, case: WorldCase, answer: str) -> GrammarJudgement:
        """Judge an answer to a case exactly, sentence by sentence."""
        return self._grammar.judge(case.topic, answer)

    @cached_property
    def _grammar(self) -> Grammar:
        return Grammar(self.texts)


def _training_texts(node: Any) -> Iterator[str]:
    """Every text below `node` that is not held out."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, Mapping):
        for key, value in node.items():
            if key != "unseen":
                yield from _training_texts(value)
    elif isinstance(node, list):
        for value in node:
            yield from _training_texts(value)


def _with_article(determiner: str, noun: str) -> str:
    if determiner == "a" and noun[0].lower() in "aeiou" and not noun.startswith("uni"):
        determiner = "an"
    return f"{determiner} {noun}".strip()


def _yours(noun: str) -> str:
    return re.sub(r"\bour\b", "your", re.sub(r"\bmy\b", "your", noun))
