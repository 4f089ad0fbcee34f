"""The host's own example bots, as they are in its wheel, with our lines added."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from nemoguardrails import LLMRails, RailsConfig
from nemoguardrails.embeddings.providers import register_embedding_provider
from nemoguardrails.embeddings.providers.base import EmbeddingModel
from nemoguardrails.testing import FakeLLMModel, TestChat
from nemoguardrails.utils import get_examples_data_path

from ttsa_guard.guard import Guard
from ttsa_guard.nemo import rails_path

from .conftest import FLAGGED, SAFE, STEERED, make_config, make_guard, say


class Letters(EmbeddingModel):
    """Counts letters: the host's own embeddings would have to be downloaded."""

    engine_name = "letters"

    def __init__(self, embedding_model: str, **_: Any) -> None:
        self.model = embedding_model

    def encode(self, documents: list[str]) -> list[list[float]]:
        return [[float(text.lower().count(chr(97 + i))) for i in range(26)] for text in documents]

    async def encode_async(self, documents: list[str]) -> list[list[float]]:
        return self.encode(documents)


@pytest.fixture
def abc(tmp_path: Path) -> Path:
    """The ABC bot: input rails, dialog rails, a knowledge base, a judge as an output rail."""
    folder = tmp_path / "abc"
    shutil.copytree(Path(get_examples_data_path("bots")) / "abc", folder)
    config = yaml.safe_load((folder / "config.yml").read_text())
    config["models"].append({"type": "embeddings", "engine": "letters", "model": "letters"})
    # Our lines.
    config["import_paths"] = [rails_path()]
    config["rails"]["output"]["flows"].insert(0, "ttsa steer output")
    (folder / "config.yml").write_text(yaml.safe_dump(config))
    with contextlib.suppress(ValueError):  # the host's registry is one for the whole process
        register_embedding_provider(Letters, "letters")
    return folder


@pytest.mark.parametrize(("answer", "reply"), [(SAFE, SAFE), (FLAGGED, STEERED)])
def test_the_abc_bot(abc: Path, answer: str, reply: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Guard, "from_config", lambda *_, **__: make_guard())
    replies = [
        "No",
        "  ask question about benefits",
        "bot respond to question about benefits",
        f'  "{answer}"',
        "No",
    ]
    llm = FakeLLMModel(responses=replies)
    app = LLMRails(RailsConfig.from_path(str(abc)), llm=llm)
    result = say(
        app,
        [{"role": "user", "content": "How much time off do I get?"}],
        options={"log": {"activated_rails": True}},
    )
    assert result.response[0]["content"] == reply
    assert [r.name for r in result.log.activated_rails if r.type == "output"] == [
        "ttsa steer output",
        "self check output",
    ]
    assert llm.inference_count == len(replies)


def test_in_the_style_of_the_hosts_own_tests(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Guard, "from_config", lambda *_, **__: make_guard([STEERED, STEERED]))
    rails = {"rails": {"output": {"flows": ["ttsa steer output"]}}} if version == "1.0" else {}
    chat = TestChat(
        make_config(version, import_paths=[rails_path()], **rails),
        llm_completions=[FLAGGED, SAFE, FLAGGED],
    )
    for reply in (STEERED, SAFE, STEERED):
        chat >> "How do I do it?"
        chat << reply
