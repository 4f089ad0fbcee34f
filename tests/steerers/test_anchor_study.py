"""The study of the steerer anchor, with the embedded model and a few words of its world."""

import asyncio

import pytest
from rich.progress import Progress

from research.anchor.study import WAYS, Study
from ttsa_guard.backends.transformers import TransformersBackend, TransformersOptions
from ttsa_guard.bench.cases import Case
from ttsa_guard.bench.prompts import Item
from ttsa_guard.testing import ScriptedModerator


@pytest.fixture(scope="module")
def backend():
    return TransformersBackend(TransformersOptions(model="embedded", device="cpu"))


def case(text):
    return Case(Item(text, "benign", (("user", text),), text, False), "an answer", flagged=True)


def studied(backend, score, ways):
    cases = [case("What does an owl eat?"), case("How do I clean a kettle?")]
    study = Study(backend, ScriptedModerator(score), n=2, tokens=24)
    with Progress(disable=True) as progress:
        return asyncio.run(study.run(cases, {way: WAYS[way] for way in ways}, progress))


def test_late_answers_are_those_whose_first_sentence_passes(backend):
    seen = []

    def longer(text):
        seen.append(text)
        return float(len(text.split()) > 12)

    found = studied(backend, longer, ["question alone", "prefix alone"])
    assert (found["cases"], found["answers"]) == (2, 2)
    assert list(found["late"]) == ["question alone", "prefix alone"]
    for shares in found["late"].values():
        assert shares["late"]["value"] <= shares["flagged"]["value"]
    assert len(seen) == 2 * 2 * 2 * 2
    assert found["attention"] == {}


def test_an_answer_that_is_bad_from_its_first_sentence_on_is_not_late(backend):
    [shares] = studied(backend, lambda _: 1.0, ["question alone"])["late"].values()
    assert (shares["flagged"]["value"], shares["late"]["value"]) == (1.0, 0.0)
    assert "late of those that begin well" not in shares


def test_attention_is_given_by_layer_before_and_after(backend):
    found = studied(backend, lambda _: 0.0, ["anchor, gamma 0.05", "constant", "prefix alone"])
    assert list(found["attention"]) == ["anchor, gamma 0.05", "constant"]
    shares = found["attention"]["anchor, gamma 0.05"]
    assert shares["after"][0] == shares["before"][0]  # it comes before the middle layers
    assert shares["after"][1] > shares["before"][1]
    assert len(shares["after"]) == backend.attention_layers
