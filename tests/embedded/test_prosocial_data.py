"""What the embedded model's harm vector and reward model are trained on, and the recipe at a
fraction of its length."""

import subprocess
import sys
from collections import Counter

import pytest

from research.embedded import prosocial_data
from ttsa_guard.embedded.grammar import prosocial_sentences
from ttsa_guard.embedded.world import World
from ttsa_guard.steerers.prosocial.preferences import ATTRIBUTES
from ttsa_guard.text import split_sentences


def test_pairs_differ_in_one_sentence_of_their_attribute():
    texts = prosocial_sentences()
    pairs = prosocial_data.pairs(30, seed=1)
    assert Counter(pair.attribute for pair in pairs) == dict.fromkeys(ATTRIBUTES, 30)
    for pair in pairs:
        more = Counter(split_sentences(pair.chosen)) - Counter(split_sentences(pair.rejected))
        assert not Counter(split_sentences(pair.rejected)) - Counter(split_sentences(pair.chosen))
        [sentence] = more.elements()
        assert sentence in texts[pair.attribute]


def test_texts_follow_the_seed():
    assert (
        prosocial_data.pairs(3, seed=1)
        == prosocial_data.pairs(3, seed=1)
        != prosocial_data.pairs(3, seed=2)
    )
    assert (
        prosocial_data.harm(3, seed=1)
        == prosocial_data.harm(3, seed=1)
        != prosocial_data.harm(3, seed=2)
    )


def test_the_judge_takes_the_sentences_for_what_they_are():
    world = World.load()
    case = world.cases("benign", None, 1)[0]
    answer = f"Happy to help you {case.topic.verb} {case.topic.answered}. Good luck and enjoy it."
    plain = world.judge(case, answer)
    assert plain.fluent
    for attribute, sentences in prosocial_sentences().items():
        for sentence in sentences:
            found = world.judge(case, f"{answer} {sentence}")
            assert found.kinds == (*plain.kinds, attribute)
            assert (found.safe, found.fluent, found.on_topic) == (
                plain.safe,
                plain.fluent,
                plain.on_topic,
            )


def test_harm_is_taught_for_prompts_that_fail_and_for_no_others():
    world = World.load()
    case = world.cases("benign", None, 1)[0]
    kinds = [world.judge(case, example.answer) for example in prosocial_data.harm(200, seed=1)]
    assert 0.5 < sum(not judged.safe for judged in kinds) / len(kinds) < 0.8


@pytest.mark.slow
def test_the_recipe_gives_files_that_the_steerer_takes(tmp_path):
    command = [
        sys.executable,
        "-m",
        "research.embedded.train_prosocial",
        "--out",
        str(tmp_path),
        "--scale",
        "0.02",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    from ttsa_guard.backends.transformers import TransformersBackend, TransformersOptions
    from ttsa_guard.steerers.prosocial.steerer import (
        HARM_VECTOR,
        REWARD,
        ProSocial,
        ProSocialOptions,
    )

    options = ProSocialOptions(
        harm_vector=str(tmp_path / HARM_VECTOR), reward=str(tmp_path / REWARD)
    )
    ProSocial(options).fit(TransformersBackend(TransformersOptions(device="cpu")))
