"""Speed of decoding: the measurements add up; how fast it is, is for people to read."""

import json

import pytest
from typer.testing import CliRunner

from ttsa_guard.bench import speed
from ttsa_guard.cli import app


@pytest.fixture(scope="module")
def tiny():
    return speed.Speed("tiny", device="cpu", dtype="float32", repeats=1)


def test_all_ways_give_the_same_tokens_and_none_is_faster_than_the_floor(tiny):
    point = tiny.point(512, 8, 8)
    assert point.equal
    assert point.floor < point.later
    assert tiny.point(64, 2, 4, generate=False).generate is None


def test_the_floor_counts_what_has_to_be_read(tiny, monkeypatch):
    monkeypatch.setattr(tiny, "flops", float("inf"))
    one = tiny.parameters * 4 + tiny.kv_bytes * (100 + 3 * speed.OWN)
    assert tiny.floor(100, 3, 1) == pytest.approx(one / tiny.bandwidth)
    assert tiny.floor(100, 3, 2) == pytest.approx((2 * one + 3 * tiny.kv_bytes) / tiny.bandwidth)


def test_memory_is_told_for_each_candidate(tiny):
    found = tiny.memory(256, 4, 8)
    assert found.keys == tiny.kv_bytes * 256 + 4 * found.keys_per_candidate
    # keys and values, layers, heads, size, bytes
    assert found.keys_per_candidate == 2 * 4 * 4 * 32 * 4 * (speed.OWN + 8)


def test_the_command(monkeypatch, tmp_path):
    for name in ("PREFIXES", "CANDIDATES", "LENGTHS"):
        monkeypatch.setattr(speed, name, (16,))
    plot = tmp_path / "speed.png"
    done = CliRunner().invoke(
        app, ["bench", "speed", "--device", "cpu", "--json", "--plot", str(plot)]
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["machine"]["shape"] == "tiny"
    assert {(p["prefix"], p["candidates"], p["tokens"]) for p in found["points"]} == {
        (16, 16, 32),
        (512, 16, 32),
        (512, 16, 16),
    }
    assert all(p["equal"] for p in found["points"])
    assert plot.stat().st_size > 10_000
    assert CliRunner().invoke(app, ["bench", "speed", "--shape", "huge"]).exit_code == 2
