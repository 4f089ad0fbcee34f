"""The demo: its scenes, its numbers, its plot, and that nobody sees a flagged answer."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ttsa_guard import plots
from ttsa_guard.cli import app, common, showcase
from ttsa_guard.config import GuardConfig
from ttsa_guard.embedded.world import World
from ttsa_guard.guard import Guard
from ttsa_guard.plugins import Plugins
from ttsa_guard.steerers.baselines.resample import Resample, ResampleOptions
from ttsa_guard.testing import ScriptedBackend, ScriptedModerator

BAD = "FLAGGED words that nobody may see."
KEYS = {
    "conversations",
    "flagged",
    "neutralised",
    "good",
    "helpful",
    "fallback",
    "generations",
    "moderation_calls",
    "steer_seconds_median",
    "plain_generation_seconds_median",
    "judge",
    "details",
    "model",
}
WORLD = World.load()
OTHER = (
    "A kitten needs a warm place to sleep, fresh water every day, and somebody who plays with it."
)
SCENES = showcase.scenes(WORLD)


class Backend(ScriptedBackend):
    """Gives in wherever the embedded model may; its samples at a high temperature are decent
    answers."""

    def __init__(self, *, silent: bool = False) -> None:
        super().__init__(self._say)
        self._scenes = {scene.user: scene for scene in (*SCENES, *showcase.real_scenes())}
        self._silent, self._user = silent, ""

    async def render(self, messages: Any, *, scope: Any = "user") -> Any:
        if messages[-1].content in self._scenes:  # a search looks at the question alone, too
            self._user = messages[-1].content
        return await super().render(messages, scope=scope)

    def _say(self, request: Any) -> str:
        scene = self._scenes[self._user]
        if (
            scene.group in ("unsafe, jailbreak", "harmless, rude persona")
            and request.temperature < 0.5
        ):
            return BAD
        if self._silent:
            return ""
        return (
            WORLD.answer(random.Random(request.seed), replace(scene.case, rate=0.0))
            if scene.case
            else OTHER
        )


def scripted(monkeypatch: pytest.MonkeyPatch, backend: Backend, *, steered: bool = True) -> None:
    def build(config: GuardConfig, plugins: Plugins | None = None) -> Guard:
        gate, guide = (
            ScriptedModerator(lambda text: float(text == BAD), name=name)
            for name in ("gate", "guide")
        )
        steerers = [Resample(ResampleOptions(n=3, batch=3))] if steered else []
        return Guard(
            config, backend=backend, gate=gate, guide=guide, steerers=steerers, plugins=plugins
        )

    monkeypatch.setattr(common, "build_guard", build)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")


def demo(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["demo", *arguments])
    assert result.exit_code == 0, result.exception
    assert "FLAGGED" not in result.output
    return str(result.stdout)


# ---------------------------------------------------------------------- what is shown


def test_the_scenes_are_distinct_and_some_can_fail() -> None:
    assert len({scene.user for scene in SCENES}) == len(SCENES) == 10
    assert [scene.case.failure for scene in SCENES] == [None] * 4 + ["content"] * 3 + ["tone"] * 3
    assert showcase.scenes(WORLD) == SCENES


def test_json_is_one_object_with_exact_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, Backend())
    found = json.loads(demo("--json"))
    assert set(found) == KEYS
    assert (found["conversations"], found["flagged"], found["neutralised"], found["fallback"]) == (
        10,
        6,
        6,
        0,
    )
    assert (found["judge"], found["good"]) == ("world", 6)
    assert 3 <= found["helpful"] <= 6  # an unsafe request may have been refused
    assert found["generations"] == 6 * 3
    assert found["moderation_calls"] == 4 + 6 * 3  # the gate twice and the guide once
    assert [d["action"] for d in found["details"]] == ["pass"] * 4 + ["swap"] * 6
    assert all(
        WORLD.judge(s.case, d["answer"]).good for s, d in zip(SCENES, found["details"], strict=True)
    )
    assert found["steer_seconds_median"] >= 0
    assert found["plain_generation_seconds_median"] >= 0


def test_the_story_and_the_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, Backend())
    output = " ".join(demo().split())  # however wide the terminal is
    for words in (
        "chat model: embedded; nothing is downloaded",
        "passed, score 0.00",
        "flagged, score 1.00: 3 candidates, 3 generations, 3 moderation calls",
        "unsafe, jailbreak",
        "6 of 10 answers",
        "6 of 6; the fallback text: 0",
        "are exact",
    ):
        assert words in output


def test_without_a_steerer_everything_flagged_ends_in_the_fallback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scripted(monkeypatch, Backend(), steered=False)
    found = json.loads(demo("--json"))
    assert (
        found["flagged"],
        found["neutralised"],
        found["good"],
        found["helpful"],
        found["fallback"],
    ) == (6, 0, 0, 0, 6)
    assert {d["answer"] for d in found["details"] if d["action"] == "fallback"} == {
        GuardConfig().fallback
    }


@pytest.mark.parametrize("encoder", [pytest.param(True, marks=pytest.mark.real), False])
def test_another_model_talks_about_real_things_and_is_judged_by_others(
    monkeypatch: pytest.MonkeyPatch, encoder: bool
) -> None:
    monkeypatch.setattr(showcase, "installed", lambda: encoder)
    scripted(monkeypatch, Backend())
    found = json.loads(demo("--json", "--model", "some/model"))
    assert (found["model"], found["judge"]) == (
        "some/model",
        "encoder_judge" if encoder else "second_opinion",
    )
    assert (found["conversations"], found["flagged"], found["neutralised"]) == (10, 6, 6)
    # A kitten answers nobody's question about a van: only a judge of topic sees that.
    about_kittens = sum("kitten" in scene.user for scene in showcase.real_scenes())
    assert found["good"] == (about_kittens if encoder else 6)
    assert "that no search has seen" in demo("--model", "some/model") or encoder


def test_a_model_that_says_nothing_is_no_reason_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, Backend(silent=True))
    found = json.loads(demo("--json"))
    assert (found["flagged"], found["fallback"]) == (6, 6)
    assert found["details"][0]["reason"] == "the answer was empty"


def test_nothing_flagged_is_a_report_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(showcase, "scenes", lambda _: SCENES[:3])
    scripted(monkeypatch, Backend())
    assert json.loads(demo("--json"))["steer_seconds_median"] is None
    assert "0 of 3 answers" in demo("--plot", str(tmp_path / "plot.png"))
    assert (tmp_path / "plot.png").is_file()


@pytest.mark.parametrize(
    ("model", "offline"), [(None, True), ("embedded", True), ("some/model", False)]
)
def test_only_the_embedded_model_keeps_the_demo_offline(
    monkeypatch: pytest.MonkeyPatch, model: str | None, offline: bool
) -> None:
    names = ("HF_HUB_OFFLINE", "NEMO_GUARDRAILS_NO_USAGE_STATS")
    for name in names:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    assert showcase.stay_offline(common.settings(model)) is offline
    assert [os.environ.get(name) for name in names] == (["1", "1"] if offline else [None, None])


# ---------------------------------------------------------------------- the plot


def test_the_plot_is_a_picture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scripted(monkeypatch, Backend())
    path = tmp_path / "plot.png"
    demo("--plot", str(path))
    assert path.read_bytes().startswith(b"\x89PNG\r\n")
    assert path.stat().st_size > 10_000


def test_plots_need_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "find_spec", lambda _: None)
    result = CliRunner().invoke(app, ["demo", "--plot", "plot.png"])
    assert result.exit_code == 2
    assert "pip install 'ttsa-guard[plot]'" in result.stderr


# ---------------------------------------------------------------------- the embedded model


def test_the_demo_as_a_user_runs_it(tmp_path: Path) -> None:
    path = tmp_path / "plot.png"
    program = "import sys; from ttsa_guard.cli import main; main()"
    command = [sys.executable, "-c", program, "demo", "--json", "--plot", str(path)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path
    )
    found = json.loads(done.stdout)
    assert done.stderr.strip() == f"plot written to {path}"
    assert (found["model"], found["judge"], found["conversations"]) == ("embedded", "world", 10)
    assert found["neutralised"] == found["flagged"] >= 3
    assert found["good"] >= found["flagged"] / 2
    assert path.read_bytes().startswith(b"\x89PNG")
