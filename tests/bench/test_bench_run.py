"""Running a benchmark: rows, going on, what is refused."""

import asyncio
import json
import shutil

import pytest
from rich.progress import Progress

from ttsa_guard.bench.cases import Case, load, save
from ttsa_guard.bench.data import Item
from ttsa_guard.bench.measure import Results
from ttsa_guard.embedded.grammar import Topic
from ttsa_guard.errors import ConfigError


def rows(folder):
    found = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    return sorted(
        ({k: v for k, v in row.items() if not k.startswith("seconds")} for row in found),
        key=lambda r: (r["arm"], r["case"]),
    )


@pytest.fixture
def whole(bench):
    asyncio.run(bench.run())
    return bench


def test_each_arm_has_a_row_for_each_case(whole):
    found = rows(whole.root / "out")
    cases = Results.load(whole.root / "out").cases
    assert {(r["arm"], r["case"]) for r in found} == {
        (arm, c.id) for arm in ("none", "default", "refuse") for c in cases
    }
    assert {(c.item.unsafe, c.flagged) for c in cases} == {
        (True, True),
        (False, True),
        (False, False),
    }


def test_rows_hold_no_texts(whole):
    words = {
        word
        for row in rows(whole.root / "out")
        for value in row.values()
        if isinstance(value, str)
        for word in value.split()
    }
    assert not words & {"bad", "answer", "question", "fine", "number"}


def test_texts_are_kept_only_when_asked_for(whole):
    assert not (whole.root / "out" / "texts.jsonl").exists()
    asyncio.run(whole.run("read", texts=True))
    lines = (whole.root / "read" / "texts.jsonl").read_text().splitlines()
    left = {(line["arm"], line["case"]): line["text"] for line in map(json.loads, lines)}
    results = Results.load(whole.root / "read")
    assert left.keys() == results.rows.keys()
    for case in results.cases:
        assert left["none", case.id] == case.answer
    assert rows(whole.root / "read") == rows(whole.root / "out")


def test_what_the_arms_do(whole):
    results = Results.load(whole.root / "out")
    flagged = [case.id for case in results.cases if case.flagged]
    assert flagged
    for case in flagged:
        none, refuse, default = (results.rows[arm, case] for arm in ("none", "refuse", "default"))
        assert (none.action, none.unchanged, none.unsafe, none.gate_after) == (
            "none",
            True,
            True,
            True,
        )
        assert (refuse.action, refuse.good, refuse.unsafe, refuse.generations) == (
            "fallback",
            False,
            False,
            0,
        )
        assert (default.action, default.generations, default.decode_passes) == ("swap", 16, 1)
        assert default.gate_before
        assert not default.gate_after
        assert default.tokens > 16
        assert default.good is not default.unsafe
        assert default.on_topic is None
    # the judge sees more than the gate does
    assert any(results.rows["default", case].unsafe for case in flagged)


def test_the_budget_is_the_same_for_all_and_can_limit_decode_passes(bench, tmp_path):
    arms = {"default": {"steerers": [{"use": "resample", "options": {"batch": 1}}]}}
    asyncio.run(bench.run(arms=arms, budget={"generations": 16, "decode_passes": 1}))
    found = rows(tmp_path / "out")
    assert {r["decode_passes"] for r in found} == {0, 1}
    assert max(r["generations"] for r in found) == 1


class KilledError(BaseException):
    pass


class Killing(Progress):
    """Ends the run in the middle of the arms."""

    def advance(self, task_id, advance=1):
        super().advance(task_id, advance)
        if self.tasks[task_id].description == "default":
            raise KilledError


@pytest.mark.parametrize("torn", ["", '{"arm": "default", "ca'])
def test_a_run_that_was_killed_goes_on(whole, torn):
    with pytest.raises(KilledError):
        asyncio.run(whole.run("again", bar=Killing(disable=True)))
    results = Results.load(whole.root / "again")
    assert 0 < len(results.rows) < 3 * len(results.cases)
    assert set(results.missing) == {"default", "refuse"}
    with (whole.root / "again" / "rows.jsonl").open("a") as file:
        file.write(torn)
    asyncio.run(whole.run("again"))
    assert rows(whole.root / "again") == rows(whole.root / "out")
    assert not Results.load(whole.root / "again").missing


def test_damaged_rows_are_told(whole):
    folder = whole.root / "damaged"
    shutil.copytree(whole.root / "out", folder)
    with (folder / "rows.jsonl").open("a") as file:
        file.write('{"arm": "default"}\n')
    with pytest.raises(ConfigError, match="it is damaged") as caught:
        asyncio.run(whole.run("damaged"))
    assert caught.value.hint == "remove it to begin again"


def test_a_finished_run_does_nothing_more(whole):
    before = (whole.root / "out" / "rows.jsonl").read_bytes()
    asyncio.run(whole.run())
    assert (whole.root / "out" / "rows.jsonl").read_bytes() == before


def test_arms_can_be_run_one_after_the_other(whole):
    asyncio.run(whole.run("again", only=["refuse"]))
    assert {r["arm"] for r in rows(whole.root / "again")} == {"refuse"}
    asyncio.run(whole.run("again"))
    assert rows(whole.root / "again") == rows(whole.root / "out")


def test_reviews_together_find_the_same(whole):
    asyncio.run(whole.run("again", together=4))
    assert rows(whole.root / "again") == rows(whole.root / "out")


@pytest.mark.parametrize(
    "changes", [{"n": 5}, {"seed": 2}, {"budget": {"generations": 8}}, {"arms": {"default": {}}}]
)
def test_another_benchmark_in_the_folder_is_refused(whole, changes):
    [name] = changes
    with pytest.raises(
        ConfigError, match=rf"with another .*\b{name}\b(.|\n)*hint: name another folder with --out"
    ):
        asyncio.run(whole.run(**changes))


def test_an_arm_that_breaks_does_not_take_the_others_along(bench, tmp_path):
    arms = {"broken": {"steerers": ["no_such_plugin"]}, "refuse": {"steerers": []}}
    runner = asyncio.run(bench.run(arms=arms, reference="refuse"))
    assert runner.failed == {"broken": "no plugin named 'no_such_plugin' is installed"}
    assert {r["arm"] for r in rows(tmp_path / "out")} == {"refuse"}


def test_prompts_that_the_model_cannot_take_are_left_out(bench, tmp_path, caplog):
    with (tmp_path / "prompts.csv").open("a") as file:
        file.write(f"{'long ' * 2000},yes\n")
    asyncio.run(bench.run(n=20))
    assert len(Results.load(tmp_path / "out").cases) > 0
    assert "prompts/13 is left out: the prompt has 2000 words" in caplog.text


@pytest.mark.parametrize("text", ["two\nlines", "a \u2028 and a \x85", "half \ud83d", "an \u00e9"])
def test_cases_keep_any_text(tmp_path, text):
    truth = Topic(text, "clean", "cleaning", "a cup", "the cup", unsafe=False, seen=True)
    case = Case(
        Item("a/1", "a", (("system", "x"), ("user", text)), text, False, truth),
        text,
        True,
        3,
        text,
        0.5,
    )
    save([case, case], tmp_path / "cases.jsonl")
    assert load(tmp_path / "cases.jsonl") == [case, case]


def test_an_unknown_arm_names_the_nearest(bench):
    with pytest.raises(ConfigError, match="did you mean 'refuse'"):
        asyncio.run(bench.run(only=["refused"]))
