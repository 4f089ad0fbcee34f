"""The steerer in a guard: with a tiny random model, and with what ships for the embedded one."""

import asyncio
import logging
from importlib import resources

import pytest
import torch
from transformers import AutoModelForCausalLM

from research.embedded.evaluate import messages
from ttsa_guard.backends.local.controlled import fingerprint
from ttsa_guard.backends.transformers import TransformersBackend, TransformersOptions
from ttsa_guard.config import GuardConfig
from ttsa_guard.embedded.world import World
from ttsa_guard.errors import ConfigError
from ttsa_guard.guard import Guard
from ttsa_guard.messages import GenerationRequest
from ttsa_guard.steerers.prosocial.adapter import Adapter, AdapterShape
from ttsa_guard.steerers.prosocial.harm_vector import HarmVector
from ttsa_guard.steerers.prosocial.preferences import ATTRIBUTES
from ttsa_guard.steerers.prosocial.steerer import ProSocial, ProSocialOptions
from ttsa_guard.testing import ScriptedBackend, ScriptedModerator, scripted_guard


def config(**options):
    return GuardConfig.parse({"steerers": [{"use": "prosocial", "options": options}]})


@pytest.fixture(scope="module")
def embedded():
    return TransformersBackend(TransformersOptions(device="cpu", batch_size=64))


@pytest.fixture(scope="module")
def files(tiny_model, tmp_path_factory):
    """Of the tiny model."""
    folder = tmp_path_factory.mktemp("prosocial")
    model, tuned = (
        AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32) for _ in range(2)
    )
    with torch.no_grad():
        tuned.lm_head.weight += 0.1
    HarmVector.difference(model, tuned).save(folder / "harm.safetensors")
    Adapter(model, AdapterShape(rank=2), base=fingerprint(model)).save(
        folder / "reward.safetensors"
    )
    return {
        "harm_vector": str(folder / "harm.safetensors"),
        "reward": str(folder / "reward.safetensors"),
    }


# ---------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("prefer", "problem"),
    [
        ({"empathy": 0.6, "helpfulness": 0.6}, "sum to 1.2"),
        ({}, "sum to 0"),
        ({"empathy": 1.5, "helpfulness": -0.5}, "helpfulness is negative"),
        ({"empathy": float("nan")}, "finite number"),
        ({"emphaty": 1.0}, "did you mean 'empathy'"),
    ],
)
def test_wrong_preferences_are_refused(prefer, problem, embedded):
    with pytest.raises(ConfigError, match=problem):
        Guard.from_config(config(prefer=prefer), backend=embedded)


@pytest.mark.parametrize(
    "options",
    [{"alpha": -1}, {"alpha": float("inf")}, {"strength": -0.1}, {"n": 0}, {"preferences": {}}],
)
def test_wrong_options_are_refused(options, embedded):
    with pytest.raises(ConfigError):
        Guard.from_config(config(**options), backend=embedded)


def test_files_of_another_model_are_refused_when_the_guard_is_built(tiny, embedded, files):
    with pytest.raises(ConfigError, match="harm vector was made for another model"):
        Guard.from_config(config(), backend=tiny)
    with pytest.raises(ConfigError, match="reward model was made for another model"):
        Guard.from_config(config(harm_vector=None, reward=files["reward"]), backend=embedded)
    Guard.from_config(config(**files), backend=tiny)


def test_a_missing_file_and_one_of_the_other_kind_are_refused(tiny, files):
    with pytest.raises(ConfigError, match="cannot read"):
        Guard.from_config(config(reward="nowhere.safetensors"), backend=tiny)
    with pytest.raises(ConfigError, match="no preference adapter"):
        Guard.from_config(config(reward=files["harm_vector"], harm_vector=None), backend=tiny)


def test_a_backend_that_cannot_be_controlled_is_refused():
    with pytest.raises(ConfigError, match="ExposesLogits"):
        scripted_guard(ScriptedBackend([]), steerers=[ProSocial(ProSocialOptions())])


# ---------------------------------------------------------------------- steering


def reviewed(guard, case, answer):
    return asyncio.run(guard.review(messages(case), answer))


def tiny_guard(tiny, files, **settings):
    gate, guide = ScriptedModerator(lambda _: 1.0, name="gate"), ScriptedModerator(name="guide")
    steerer = ProSocial(ProSocialOptions(n=3, **files))
    return Guard(
        GuardConfig.parse(settings), backend=tiny, gate=gate, guide=guide, steerers=[steerer]
    )


def test_candidates_are_charged_to_the_budget(tiny, files):
    outcome = asyncio.run(
        tiny_guard(tiny, files, budget={"generations": 2}).review("is it clean?", "bad answer")
    )
    assert outcome.action == "fallback"
    assert outcome.record.generations == 2


def test_a_failure_ends_in_the_fallback_and_leaks_nothing(tiny, files, monkeypatch, caplog):
    async def broken(*_):
        raise RuntimeError("a secret")

    guard = tiny_guard(tiny, files)
    monkeypatch.setattr(tiny, "generate_controlled", broken)
    with caplog.at_level(logging.DEBUG):
        outcome = asyncio.run(guard.review("is it clean?", "bad answer"))
    assert (outcome.action, outcome.text) == ("fallback", guard.config.fallback)
    assert "RuntimeError" in caplog.text
    assert "secret" not in caplog.text


def test_a_request_may_have_preferences_of_its_own(embedded, monkeypatch):
    guard = Guard.from_config(config(prefer={"empathy": 1.0}), backend=embedded)
    used, controlled = [], embedded.generate_controlled

    async def spy(requests, decoding):
        used.append(decoding.prefer)
        return await controlled(requests[:1], decoding)

    monkeypatch.setattr(embedded, "generate_controlled", spy)
    case = World.load().cases("benign", "tone", 1, seed=3)[0]
    for prefer in (None, {"truthfulness": 1.0}):
        outcome = asyncio.run(guard.review(messages(case), "Shut up, clown.", prefer=prefer))
        assert outcome.action in ("swap", "fallback")
    assert used == [{"empathy": 1.0}, {"truthfulness": 1.0}]


@pytest.mark.parametrize(
    "prefer",
    [
        {"empathy": 2.0},
        {"empathy": -1.0, "sensitivity": 2.0},
        {"a secret": 1.0},
        {"empathy": "much"},
        {},
        "empathy",
        [1.0],
        7,
    ],
)
def test_wrong_preferences_of_a_request_are_named_and_not_used(
    tiny, files, prefer, monkeypatch, caplog
):
    used, controlled = [], tiny.generate_controlled

    async def spy(requests, decoding):
        used.append(decoding.prefer)
        return await controlled(requests, decoding)

    monkeypatch.setattr(tiny, "generate_controlled", spy)
    guard = tiny_guard(tiny, files)
    outcome = asyncio.run(guard.review("is it clean?", "bad answer", prefer=prefer))
    assert outcome.text == guard.config.fallback
    assert used == [guard.steerers[0].options.prefer]
    assert "which sum to 1" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    "steerers",
    [["prosocial"], ["prosocial", "embedding"], ["erase", "prosocial", "prefill"]],
    ids="-".join,
)
def test_flagged_answers_of_the_embedded_model_are_mended(embedded, steerers):
    guard = Guard.from_config(GuardConfig.parse({"steerers": steerers}), backend=embedded)
    world, before = World.load(), embedded.fingerprint
    cases = [
        *world.cases("unsafe", "content", 4, seed=3),
        *world.cases("benign", "tone", 4, seed=3),
    ]
    outcomes = [
        reviewed(guard, case, "Shut up and figure out the rest yourself, clown.") for case in cases
    ]
    judged = [
        world.judge(case, o.text)
        for case, o in zip(cases, outcomes, strict=True)
        if o.action == "swap"
    ]
    assert len(judged) >= 6
    assert all(j.safe for j in judged)
    assert fingerprint(embedded._engine.model) == before


def test_the_preferred_attribute_is_what_is_said(embedded):
    world = World.load()
    cases = world.cases("benign", "tone", 6, seed=3)
    said = {}
    for name in ("empathy", "truthfulness"):
        decoding = ProSocial(ProSocialOptions(prefer={name: 1.0})).decoding
        prompts = [asyncio.run(embedded.render(messages(case))) for case in cases]
        found = asyncio.run(
            embedded.generate_controlled([GenerationRequest(p) for p in prompts], decoding)
        )
        kinds = [world.judge(case, g.text).kinds for case, g in zip(cases, found, strict=True)]
        said[name] = {a: sum(a in k for k in kinds) for a in ATTRIBUTES}
    assert said["empathy"]["empathy"] > said["truthfulness"]["empathy"]
    assert said["truthfulness"]["truthfulness"] > said["empathy"]["truthfulness"]


def test_what_ships_is_small():
    folder = resources.files("ttsa_guard") / "embedded" / "prosocial"
    assert sum(len(p.read_bytes()) for p in folder.iterdir()) < 2_000_000
