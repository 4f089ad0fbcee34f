"""Labelled answers of the embedded world for the lite moderator.

A guard that searches for a low score will find whatever the moderator was not trained on. So
besides the world's own answers there are single sentences, dropped and shuffled sentences, cut-off
and garbled texts, and mixtures of two answers: the damage that a search may do. Each is labelled by
what it still contains.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from research.embedded.lite_data import UNKNOWN, Example, Part
from ttsa_guard.embedded.world import Split, World, WorldCase
from ttsa_guard.text import split_sentences

SOURCE = "world"
WEIGHT = 0.4
"""Weight of a world answer in training. There are many, and they are alike."""
BAD_WEIGHT = 3.0
KINDS = ("answered", "complied", "refused", "redirected", "early", "late")
"""Kinds of world answers. The second and the last two must be flagged."""


@dataclass(frozen=True)
class Answer:
    """A world answer as sentences with their kinds, as `World.judge` names them."""

    case: WorldCase
    sentences: tuple[tuple[str, str], ...]
    kind: str

    @property
    def text(self) -> str:
        """The whole answer."""
        return " ".join(sentence for sentence, _ in self.sentences)


def draw(world: World, rng: random.Random, kind: str, topics: Split, wording: Split) -> Answer:
    """Draw one answer of the given kind, one of `KINDS`, about a random topic."""
    unsafe = kind in {"complied", "refused", "redirected"}
    case = world.case(
        rng, "unsafe" if unsafe else "benign", None, topics, wording, training=topics == "seen"
    )
    failing = kind in {"complied", "early", "late"}
    when = kind if kind in {"early", "late"} else None
    case = replace(case, rate=1.0 if failing else 0.0, when=when)  # type: ignore[arg-type]
    while True:
        text = world.answer(rng, case)
        judged = world.judge(case, text)
        if kind not in {"refused", "redirected"} or judged.refusal == (kind == "refused"):
            return Answer(case, tuple(zip(split_sentences(text), judged.kinds, strict=True)), kind)


def evaluation(
    world: World, n: int, *, topics: Split, wording: Split = "unseen", seed: int = 1
) -> dict[str, list[str]]:
    """Return `n` held-out answers of every kind."""
    rng = random.Random(f"lite/evaluation/{topics}/{seed}")
    return {
        kind: [draw(world, rng, kind, topics, wording).text for _ in range(n)] for kind in KINDS
    }


def examples(
    world: World, n: int, *, part: Part, seed: int, topics: Split = "seen"
) -> Iterator[Example]:
    """Yield `n` answers of every kind, each with two variations, and openings that do not fit."""
    rng = random.Random(f"lite/{part}/{seed}")
    answers = [draw(world, rng, kind, topics, "seen") for _ in range(n) for kind in KINDS]
    for answer in answers:
        yield _labelled(answer.sentences, part)
        for sentence in answer.sentences:
            # Heavy, since one bad sentence has to overcome the margin that `pooled_logits` asks of
            # a part.
            yield replace(
                _labelled((sentence,), part),
                weight=BAD_WEIGHT if _is_bad(sentence[1]) else WEIGHT / 2,
            )
        vary = rng.choice((_dropped, _shuffled, _cut))
        yield from _checked(vary(rng, answer, rng.choice(answers)), part)
        yield from _checked(
            rng.choice((_mixed, _mixed, _garbled))(rng, answer, rng.choice(answers)), part
        )
    for _ in range(n):
        yield _swapped_opening(world, rng, part, topics)
        yield _over_refusal(world, rng, part, topics)
    for entry in world.texts["small_talk"]:
        for text in entry["say"]:
            yield Example(text, SOURCE, part, 0, 0, 0, 10 * WEIGHT)


Sentences = tuple[tuple[str, str], ...]


def _is_bad(kind: str) -> bool:
    return kind.startswith(("comply", "abuse"))


def _checked(sentences: Sentences | None, part: Part) -> Iterator[Example]:
    if sentences:
        yield _labelled(sentences, part)


def _labelled(sentences: Sentences, part: Part) -> Example:
    kinds = {kind for _, kind in sentences}
    harm, toxic = (any(k.startswith(bad) for k in kinds) for bad in ("comply", "abuse"))
    text = " ".join(sentence for sentence, _ in sentences)
    return Example(
        text,
        SOURCE,
        part,
        int(harm) if harm or not toxic else UNKNOWN,
        int(toxic),
        _refusal(kinds),
        WEIGHT,
    )


def _refusal(kinds: set[str]) -> int:
    declines = bool(kinds & {"refuse", "reason"})
    if declines and kinds <= {"refuse", "reason", "refuse_close"}:
        return 1
    return UNKNOWN if declines or kinds <= {"refuse_close"} else 0


def _dropped(rng: random.Random, answer: Answer, _: Answer) -> Sentences:
    return tuple(s for s in answer.sentences if rng.random() < 0.6)


def _shuffled(rng: random.Random, answer: Answer, _: Answer) -> Sentences:
    return tuple(rng.sample(answer.sentences, len(answer.sentences)))


def _mixed(rng: random.Random, answer: Answer, other: Answer) -> Sentences:
    """Return the beginning of one answer and the end of another."""
    return answer.sentences[: rng.randint(1, 3)] + other.sentences[-rng.randint(1, 3) :]


def _cut(rng: random.Random, answer: Answer, _: Answer) -> Sentences | None:
    """Return an answer that stops within a sentence; None if too little of the sentence is left."""
    keep = rng.randrange(len(answer.sentences))
    sentence, kind = answer.sentences[keep]
    words = sentence.split()
    left = rng.randint(1, len(words))
    if kind.startswith(("comply", "abuse", "refuse")) and left < 0.6 * len(words):
        return answer.sentences[:keep] or None
    return (*answer.sentences[:keep], (" ".join(words[:left]), kind))


def _garbled(rng: random.Random, answer: Answer, other: Answer) -> Sentences:
    """Return an answer with words lost, doubled or replaced by words of another answer.

    That is what steering makes of a text before it breaks.
    """
    foreign = [w for s, kind in other.sentences if not _is_bad(kind) for w in s.split()] or ["the"]

    def damage(sentence: str) -> str:
        words: list[str] = []
        for word in sentence.split():
            chance = rng.random()
            kept = [rng.choice(foreign)] if 0.08 <= chance < 0.14 else [word]
            words += kept * (0 if chance < 0.05 else 2 if chance < 0.08 else 1)
        text = " ".join(words or ["the"])
        return text.lower() if rng.random() < 0.2 else text

    return tuple((damage(s), kind) for s, kind in answer.sentences)


def _swapped_opening(world: World, rng: random.Random, part: Part, topics: Split) -> Example:
    """Return an opening that does not fit its topic, with the label that is right for it.

    A benign opening for an unsafe act is unsafe. The opening of a bad answer is harmless for a
    harmless act.
    """
    unsafe = rng.random() < 0.5
    topic = world.topic(rng, "unsafe" if unsafe else "benign", topics, training=topics == "seen")
    templates = (
        world.texts["benign_answers"]["open"]
        if unsafe
        else world.texts["unsafe_answers"]["comply_open"]
    )
    text = _filled(rng.choice(templates), topic.verb, topic.gerund, topic.answered)
    return Example(text, SOURCE, part, int(unsafe), 0, UNKNOWN, 2 * WEIGHT)


def _over_refusal(world: World, rng: random.Random, part: Part, topics: Split) -> Example:
    """Return a refusal or a redirect of a harmless request, which is safe."""
    topic, refusal = world.topic(rng, "benign", topics, training=topics == "seen"), rng.randrange(2)
    template = rng.choice(world.texts["unsafe_answers"]["refuse" if refusal else "redirect"])
    return Example(
        _filled(template, topic.verb, topic.gerund, topic.answered),
        SOURCE,
        part,
        0,
        0,
        refusal,
        WEIGHT,
    )


def _filled(template: str, verb: str, gerund: str, noun: str) -> str:
    return template.format(v=verb, g=gerund, o=noun, a=noun)
