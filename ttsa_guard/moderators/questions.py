"""Find the question of a message by what was learned from questions and from instructions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING, TypeAlias

from ttsa_guard.languages import may_be_english
from ttsa_guard.moderators import minilm
from ttsa_guard.moderators.everyday import can_be_read
from ttsa_guard.request import form, question, sentences_and_lines, without_asides

if TYPE_CHECKING:
    from ttsa_guard.moderators.minilm import Floats

FORM_WEIGHT = 0.5
"""What the form of a sentence counts beside its embedding, which is a unit vector."""
SWITCH = 2.0
"""What a change between sentences that ask and others costs, in nats.

So one sentence that looks strange does not cut a question in two.
"""
_MOST_CHANGES = 2
"""A question stands before an instruction, behind it or inside it, or the other way round."""
_MOST_SENTENCES = 100
_MOST_SAID = 300
"""Sentences among which those are sought that have to do with a question."""
NEEDED = 0.25
"""Cosine from which on a sentence of a conversation has to do with a question.

Of facts that a question is about, 95 % are above 0.28. Of instructions that have nothing to do with
it, 95 % are below 0.21.
"""
_Paths: TypeAlias = dict[tuple[bool, int], tuple[float, list[bool]]]
"""The likeliest labels and how likely they are, by the last of them and the changes in them."""


async def find_question(text: str) -> str:
    """Return what a user's message asks, without instructions around it and without asides.

    A logistic regression over the embeddings of MiniLM and the forms of its sentences says of each
    whether it belongs to the question or tells the assistant how to behave. What is left out is one
    piece or what stands around one. Where nothing was learned, the rules of `request.question`
    decide: where ``ttsa-guard[encoder]`` is not installed or fails, for one sentence or more than
    100, and for a text in another language than English or longer than 6,000 characters. Sentences
    in another language than an English question do not belong to it.
    """
    plain = _without_foreign(without_asides(text))
    sentences = sentences_and_lines(plain)
    learned = 1 < len(sentences) <= _MOST_SENTENCES and can_be_read(plain)
    if not learned or not minilm.installed():
        return question(plain)
    logits = await minilm.attempted(_logits, sentences)
    if logits is None:
        return question(plain)
    asks = labelled(logits)
    if all(asks):
        return plain
    return " ".join(sentence for sentence, kept in zip(sentences, asks, strict=True) if kept)


def _without_foreign(text: str) -> str:
    """Return what is English of a text whose question is. Another one stays as it is."""
    if not may_be_english(question(text)):
        return text
    sentences = sentences_and_lines(text)
    english = [sentence for sentence in sentences if may_be_english(sentence)]
    return "\n".join(english) if 0 < len(english) < len(sentences) else text


async def find_needed(question: str, said: Sequence[str]) -> list[str]:
    """Return the sentences that have to do with a question, so that its answer may need them.

    Those are the ones whose embedding by MiniLM is near enough that of the question. None is found
    where ``ttsa-guard[encoder]`` is not installed or fails, among more than 300 sentences, and for
    a question in another language than English.
    """
    readable = 0 < len(said) <= _MOST_SAID and can_be_read(question)
    if not readable or not minilm.installed():
        return []
    cosines = await minilm.attempted(minilm.relevance, question, said)
    if cosines is None:
        return []
    return [sentence for sentence, near in zip(said, cosines, strict=True) if near >= NEEDED]


def described(sentences: Sequence[str]) -> Floats:
    """Return what the regression reads of each sentence, [n, 392]."""
    import numpy as np

    forms = np.array([form(sentence) for sentence in sentences], np.float32)
    return np.hstack([minilm.embed(sentences), FORM_WEIGHT * forms])


def labelled(logits: Sequence[float]) -> list[bool]:
    """Return which sentences ask: the likeliest labels with at most two changes between them.

    Args:
        logits: for each sentence, that it asks. At least one of them is found to.
    """
    from numpy import logaddexp

    paths: _Paths = {(label, 0): (0.0, []) for label in (True, False)}
    for logit in logits:
        grown: _Paths = {}
        for (before, changes), (score, labels) in paths.items():
            for now in (True, False) if labels else (before,):
                made = changes + (now is not before)
                gain = -float(logaddexp(0, -logit if now else logit)) - SWITCH * (now is not before)
                best = grown.get((now, made))
                if made <= _MOST_CHANGES and (best is None or score + gain > best[0]):
                    grown[now, made] = (score + gain, [*labels, now])
        paths = grown
    return max((path for path in paths.values() if any(path[1])), key=lambda path: path[0])[1]


def _logits(sentences: Sequence[str]) -> list[float]:
    weights, bias = _regression()
    return [float(logit) for logit in described(sentences) @ weights + bias]


@lru_cache(maxsize=1)
def _regression() -> tuple[Floats, float]:
    """Read the weights of the regression, [392], and its bias."""
    import numpy as np

    file = resources.files("ttsa_guard.embedded") / "questions.npz"
    with file.open("rb") as opened, np.load(opened) as held:
        return held["weights"].astype(np.float32), float(held["bias"])
