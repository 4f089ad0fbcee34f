"""``ttsa-guard prosocial`` and ``--prefer``."""

import json

import pytest
from typer.testing import CliRunner

from ttsa_guard.cli import app
from ttsa_guard.cli.common import settings
from ttsa_guard.errors import ConfigError
from ttsa_guard.steerers.prosocial.adapter import Adapter
from ttsa_guard.steerers.prosocial.harm_vector import HarmVector
from ttsa_guard.steerers.prosocial.preferences import ATTRIBUTES


def run(*words):
    return CliRunner().invoke(app, ["prosocial", *map(str, words)])


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_harm_vector_and_a_regulated_model(tiny_model, tmp_path, method):
    examples = write(
        tmp_path / "harm.jsonl", [{"prompt": "is it clean?", "answer": "bad kettle"}] * 2
    )
    out, regulated = tmp_path / "h.safetensors", tmp_path / "regulated"
    words = [
        "--method",
        method,
        "--rank",
        "2",
        "--steps",
        "3",
        "--batch",
        "1",
        "--state",
        tmp_path / "state",
        "--device",
        "cpu",
    ]
    done = run(
        "harm-vector",
        tiny_model,
        "--examples",
        examples,
        "--out",
        out,
        "--regulated",
        regulated,
        "--keep",
        "0.2",
        *words,
    )
    assert done.exit_code == 0, done.output
    vector = HarmVector.load(out)
    assert vector.norm() > 0
    assert (tmp_path / "state").exists()
    from ttsa_guard.steerers.prosocial import training

    base, _ = training.load(str(tiny_model), "cpu")
    safe, _ = training.load(str(regulated), "cpu")
    taken = HarmVector.difference(base, safe, keep=1.0)
    assert taken.cosine(vector) == pytest.approx(-1.0, abs=1e-3)


def test_a_reward_model(tiny_model, tmp_path):
    rows = [
        {"prompt": "is it clean?", "chosen": f"kettle {a}", "rejected": "the", "attribute": a}
        for a in ATTRIBUTES
    ]
    out = tmp_path / "r.safetensors"
    words = ["--steps", "2", "--batch", "1", "--rank", "2", "--device", "cpu"]
    done = run(
        "train", tiny_model, "--pairs", write(tmp_path / "p.jsonl", rows), "--out", out, *words
    )
    assert done.exit_code == 0, done.output
    assert Adapter.load(out).shape.rank == 2


def test_wrong_files_end_with_a_hint(tiny_model, tmp_path):
    pairs = write(tmp_path / "p.jsonl", [{"prompt": "a secret"}])
    done = run("train", tiny_model, "--pairs", pairs, "--out", tmp_path / "r.safetensors")
    assert done.exit_code == 2
    assert "line 1" in done.output
    assert "secret" not in done.output


def test_preferences_from_the_command_line():
    [use] = settings(steerer="prosocial", prefer="empathy=0.6, helpfulness=0.4").steerers
    assert use.options == {"prefer": {"empathy": 0.6, "helpfulness": 0.4}}


@pytest.mark.parametrize(
    ("steerer", "prefer", "problem"),
    [
        (None, "empathy=1", "for the steerer prosocial"),
        ("prefill", "empathy=1", "for the steerer prosocial"),
        ("prosocial", "empathy", "cannot be read"),
        ("prosocial", "empathy=much", "cannot be read"),
        ("prosocial", "", "cannot be read"),
    ],
)
def test_wrong_preferences_on_the_command_line(steerer, prefer, problem):
    with pytest.raises(ConfigError, match=problem):
        settings(steerer=steerer, prefer=prefer)
