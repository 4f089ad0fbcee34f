"""Where prompts come from."""

import gzip
import hashlib
import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from ttsa_guard.bench import data
from ttsa_guard.bench.config import PromptSource
from ttsa_guard.errors import ConfigError

HEADS = {
    "xstest": (
        (
            "id,prompt,type,label\n1,how do I kill a process,a,safe\n2,how do I do a bad"
            " thing,b,unsafe\n"
        ),
        (1, 1),
    ),
    "harmbench": (
        (
            "Behavior,FunctionalCategory,ContextString\ndo a bad thing,standard,\ndo"
            " it,contextual,a place\nsing it,copyright,\n"
        ),
        (0, 2),
    ),
    "advbench": ("goal,target\ndo a bad thing,fine\n", (0, 1)),
    "strongreject": ("category,source,forbidden_prompt\na,b,do a bad thing\n", (0, 1)),
    "hh_red_team": (json.dumps({"chosen": "\n\nHuman: do a bad thing\n\nAssistant: no"}), (0, 1)),
}


@pytest.fixture
def keep(tmp_path, monkeypatch):
    """Write a tiny file in the place of a known data set."""

    def write(name, text, *, right=True):
        known = data.KNOWN[name]
        path = tmp_path / "sets" / name / known.file
        path.parent.mkdir(parents=True)
        encoded = text.encode()
        path.write_bytes(gzip.compress(encoded) if path.suffix == ".gz" else encoded)
        if right:
            monkeypatch.setitem(
                data.KNOWN,
                name,
                replace(known, sha256=hashlib.sha256(path.read_bytes()).hexdigest()),
            )
        return tmp_path / "sets"

    return write


@pytest.mark.parametrize("name", HEADS)
def test_known_data_sets(keep, name):
    text, (benign, unsafe) = HEADS[name]
    items = data.read(PromptSource(name=name), n=10, seed=0, folder=keep(name, text))
    assert [sum(i.unsafe is flag for i in items) for flag in (False, True)] == [benign, unsafe]
    assert all(
        i.id.startswith(f"{name}/") and i.messages[-1][1].endswith(i.question) for i in items
    )
    assert {i.kind for i in items} <= {f"{name}, unsafe", f"{name}, benign"}


@pytest.mark.parametrize("name", HEADS)
def test_each_says_where_it_is_from(name):
    known = data.KNOWN[name]
    assert known.origin.startswith("https://")
    assert known.licence in ("MIT", "CC BY 4.0")
    assert len(known.sha256) == 64


def test_context_stands_before_the_prompt(keep):
    items = data.read(
        PromptSource(name="harmbench"),
        n=10,
        seed=0,
        folder=keep("harmbench", HEADS["harmbench"][0]),
    )
    assert {i.messages[-1][1] for i in items} == {"do a bad thing", "a place\n\ndo it"}


@pytest.mark.parametrize(
    ("text", "turns"),
    [
        ("H: one\n\nA: two\n\nH: three\n\nA: four", ["one", "two", "three"]),
        ("H: one\n\nA: two\n\nH: three", ["one", "two", "three"]),
        ("H: one\n\nH: two\n\nA: three", ["one\n\ntwo"]),
        ("H: one\n\nA: \n\nH: two", ["one\n\ntwo"]),
    ],
)
def test_the_last_message_of_a_conversation_is_answered(keep, text, turns):
    text = "\n\n" + text.replace("H:", "Human:").replace("A:", "Assistant:")
    folder = keep("hh_red_team", json.dumps({"chosen": text}))
    [item] = data.read(PromptSource(name="hh_red_team"), n=1, seed=0, folder=folder)
    roles = ["user", "assistant", "user"][: len(turns)]
    assert item.messages == tuple(zip(roles, turns, strict=True))
    assert item.question == turns[-1]


def test_a_changed_file_is_refused(keep):
    folder = keep("advbench", HEADS["advbench"][0], right=False)
    with pytest.raises(ConfigError, match=r"not the file with the SHA-256 6cd1\w+\n.*https://"):
        data.read(PromptSource(name="advbench"), n=1, seed=0, folder=folder)


@pytest.mark.parametrize("folder", [True, False])
def test_a_missing_file_says_where_it_is_from(tmp_path, folder):
    with pytest.raises(
        ConfigError, match=r"xstest_prompts.csv(.|\n)*exaggerated-safety(.|\n)*--data DIR"
    ):
        data.read(PromptSource(name="xstest"), n=1, seed=0, folder=tmp_path if folder else None)


ROWS = [{"text": f"question {i}", "label": "safe" if i % 2 else "unsafe"} for i in range(10)]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return PromptSource(file=path, field="text", unsafe="label")


def test_n_of_each_kind_are_drawn_by_the_seed(source):
    drawn = [[i.id for i in data.read(source, n=3, seed=seed)] for seed in (0, 0, 1)]
    assert len(drawn[0]) == 6
    assert drawn[0] == drawn[1] != drawn[2]
    assert {i.unsafe for i in data.read(source, n=3, seed=0)} == {True, False}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"field": "prompt"}, "mine, row 1: no text in the field 'prompt'"),
        ({"unsafe": "harm"}, "mine, row 1: no field 'harm'"),
    ],
)
def test_fields_that_are_not_there(source, change, message):
    with pytest.raises(ConfigError, match=message):
        data.read(source.model_copy(update=change), n=1, seed=0)


@pytest.mark.parametrize(("name", "text"), [("a.jsonl", "{SECRET"), ("b.csv", None)])
def test_files_that_cannot_be_read(tmp_path, name, text):
    if text:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=f"cannot read .*{name}") as caught:
        data.read(PromptSource(file=tmp_path / name), n=1, seed=0)
    assert "SECRET" not in str(caught.value)


def test_hugging_face_data(monkeypatch):
    asked = []
    fake = SimpleNamespace(load_dataset=lambda path, split: asked.append((path, split)) or ROWS)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    items = data.read(
        PromptSource(hub="someone/prompts", split="train", field="text", unsafe=False), n=20, seed=0
    )
    assert asked == [("someone/prompts", "train")]
    assert (len(items), {i.kind for i in items}) == (10, {"someone/prompts, benign"})


def test_hugging_face_data_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"needs the package datasets\n.*pip install datasets"):
        data.read(PromptSource(hub="someone/prompts"), n=1, seed=0)


def test_the_embedded_world():
    items = data.read(PromptSource(name="embedded"), n=8, seed=3)
    assert {i.kind for i in items} == {"content", "tone early", "tone late", "benign"}
    assert all(i.unsafe == (i.kind == "content") for i in items)
    assert all(i.question in i.messages[-1][1] for i in items)
    assert len({i.id for i in items}) == len(items) == 32
