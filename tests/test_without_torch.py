"""What works where torch and transformers are not installed, and what is said about the rest."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.backends.vllm_server import Server, running
from ttsa_guard.hf.light import LightTokenizer, context_of, ends_of
from ttsa_guard.hf.source import Source
from ttsa_guard.messages import Message
from ttsa_guard.plugins import HEAVY

ROOT = Path(__file__).parents[1]
BAD = "You are a stupid idiot, get lost."
BLOCKED = "import sys; sys.modules |= dict.fromkeys(('torch', 'transformers'))\n"
COMMAND = BLOCKED + "sys.argv[1:] = {!r}\nfrom ttsa_guard.cli import main\nmain()"
GUARD = """
import asyncio, json
from ttsa_guard import Guard, GuardConfig
async def main():
    guard = Guard.from_config(GuardConfig.parse(json.loads(sys.argv[1])))
    try:
        answer = await guard.respond("the kettle")
        mended = await guard.review("the kettle", sys.argv[2])
    finally:
        await guard.close()
    for outcome in (answer, mended):
        print(json.dumps([outcome.action, outcome.text, outcome.record.generations]))
asyncio.run(main())
"""


def python(program, *arguments, code=0):
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code, done.stderr
    return done


def command(*words, code=0):
    return python(COMMAND.format(words), code=code)


def test_moderate_plugins_and_config_check(tmp_path):
    texts, settings = tmp_path / "texts.jsonl", tmp_path / "settings.yml"
    texts.write_text(json.dumps({"text": BAD}) + "\n")
    settings.write_text("gate: lite\nguide: lite\nsteerers: [erase, resample]\n")
    assert "1 flagged" in command("moderate", str(texts)).stderr
    assert "nothing is wrong" in command("config", "check", str(settings)).stdout
    listed = command("plugins", "--verbose").stdout
    assert "embedding is broken: it needs torch, which is not installed" in listed
    assert "vllm (backend)" in listed


def test_what_is_checked_by_the_schema_alone_needs_torch():
    """A plugin that imports NumPy at once is taken for one that needs torch; it does."""
    program = """
from ttsa_guard.checking.options import load_light
from ttsa_guard.plugins import Plugins
from ttsa_guard.schema import shipped_schema
for key in shipped_schema()["$defs"]:
    if key.count(".") == 1:
        kind, name = key.split(".")
        print(name, load_light(Plugins(), kind, name)[1])
"""
    light = [line.split() for line in python(program).stdout.splitlines()]
    listed = " ".join(command("plugins", "--verbose").stdout.split())
    broken = set(re.findall(r"(\w+) is broken: it needs (?:torch|transformers),", listed))
    assert {name for name, *heavy in light if heavy and heavy != ["nemoguardrails"]} == broken
    assert {"encoder", "embedding"} <= broken


def test_what_needs_torch_says_so():
    said = command("steer", "hello", code=2).stderr
    assert re.search("plugin '\\w+' needs torch, which is not installed", said)
    assert "pip install ttsa-guard" in said


@pytest.fixture(scope="module")
def server(tiny_model):
    with running(Server(tiny_model)) as [one]:
        yield one


def settings_for(server, model, **more):
    options = {"model": str(model), "served_name": "m", "urls": [server.url]}
    return {
        "backend": {"use": "vllm", "options": options},
        "gate": "lite",
        "guide": "lite",
        "steerers": [{"use": "resample", "options": {"n": 4, "batch": 4}}],
        "generation": {"max_new_tokens": 12},
        **more,
    }


def test_a_guard_over_vllm_servers(server, tiny_model):
    shown = python(BLOCKED + GUARD, json.dumps(settings_for(server, tiny_model)), BAD).stdout
    answer, mended = map(json.loads, shown.splitlines())
    assert answer[0] == "pass"
    assert mended[0] in ("swap", "fallback")
    assert mended[2] == 4
    assert BAD not in shown


@pytest.mark.slow
def test_answers_are_the_same_with_torch(server, tiny_model):
    settings = json.dumps(settings_for(server, tiny_model))
    without, whole = (python(p + GUARD, settings, BAD).stdout for p in (BLOCKED, "import sys\n"))
    assert without == whole


def test_a_steerer_that_moves_embeddings_is_refused(server, tiny_model):
    settings = json.dumps(settings_for(server, tiny_model, steerers=["embedding"]))
    assert "plugin 'embedding' needs torch" in python(BLOCKED + GUARD, settings, BAD, code=1).stderr


TALKS = [
    [Message("user", "How do I clean a copper kettle?")],
    [Message("system", "Be kind."), Message("user", "é 漢字 <|end|> {x}\n  two  spaces ")],
    [Message("user", "hi"), Message("assistant", "Hello!"), Message("user", " the kettle")],
]


@pytest.mark.parametrize("scope", ["user", "all"])
@pytest.mark.parametrize("model", ["embedded", "tiny"])
def test_the_light_tokenizer_is_that_of_transformers(model, scope, tiny_model):
    from ttsa_guard.backends.vllm.local import LocalHalf
    from ttsa_guard.hf.chat_template import render

    path = str(tiny_model) if model == "tiny" else Source.of(model).path
    light, whole = LightTokenizer(path), LocalHalf(path, "auto", {})
    for talk in TALKS:
        theirs, ours = render(whole.tokenizer, talk, scope=scope), render(light, talk, scope=scope)
        assert ours.segments == theirs.segments
        assert light.decode(ours.ids) == whole.tokenizer.decode(ours.ids)
        assert light.decode(ours.ids, skip_special_tokens=True) == whole.decode(ours.ids)
    assert (ends_of(path, light), context_of(path, light)) == (whole.ends, whole.context_length)


def test_the_documented_way_names_all_that_is_needed():
    """Everything that the package depends on, but for what is heavy."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = project.split("\ndependencies = [")[1].split("\n]")[0]
    needed = {Requirement(r).name for r in re.findall('"(.*?)"', listed)} - set(HEAVY)
    page = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    told = page.split("pip install --no-deps ttsa-guard\npip install ")[1].split("\n```")[0]
    assert set(told.split()) == needed
