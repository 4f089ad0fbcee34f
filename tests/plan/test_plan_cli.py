"""``ttsa-guard plan``, and plans that begin with a benchmark."""

import json
import signal
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from ttsa_guard.audit import AuditSink
from ttsa_guard.bench import cases as stored
from ttsa_guard.bench.cases import Case
from ttsa_guard.bench.data import Item
from ttsa_guard.bench.files import CASES, ROWS, SCHEMA, RunMeta
from ttsa_guard.cli import app, common
from ttsa_guard.errors import ConfigError
from ttsa_guard.plan import validation
from ttsa_guard.plan.capacity import point
from ttsa_guard.plan.config import PlanConfig
from ttsa_guard.plan.costs import Costs
from ttsa_guard.plan.searches import from_bench, with_audit, with_searches
from ttsa_guard.plan.simulation import Arrival, pass_lengths, simulate
from ttsa_guard.record import AuditRecord

pytestmark = pytest.mark.usefixtures("interruptible")
EXAMPLE = Path(__file__).parents[2] / "examples" / "plan" / "settings.yml"
COSTS = Costs(step=((1, 0.01), (32, 0.02)), about={"model": "embedded", "device": "cpu"})
JUDGED = {
    **dict.fromkeys(("unchanged", "unsafe", "good", "helpful", "fluent"), False),
    **{f"{who}_{when}": None for who in ("gate", "guide", "judge") for when in ("before", "after")},
    **dict.fromkeys(("on_topic", "refusal", "question_similarity", "plain_similarity")),
}
ROW = {  # as older versions wrote it, without decode steps and the seconds of parts
    **JUDGED,
    "arm": "ours",
    "decode_passes": 2,
    "generations": 6,
    "tokens": 240,
    "moderation_calls": 5,
    "action": "swap",
    "seconds": 4.0,
}


@pytest.fixture
def quick(sleeping, monkeypatch):
    """The guard of the commands is one over a model that hardly sleeps."""
    sleeping.backend.costs = Costs(step=((1, 1e-4),), rows=2)
    monkeypatch.setattr(common, "build_guard", lambda _: sleeping)
    return sleeping


def run(*arguments, code=0):
    done = CliRunner().invoke(app, ["plan", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return done


@pytest.fixture
def bench(tmp_path):
    """A folder with two searches of the arm that counts, one of another arm, and an answer that
    passed."""
    folder = tmp_path / "bench"
    config = {"reference": "ours", "backend": {"options": {}}, "arms": {"ours": {}, "other": {}}}
    RunMeta(SCHEMA, "it", config, {}, "cpu", seed=1).save(folder)
    items = [Item(name, "benign", (("user", "How?"),), "How?", False) for name in "abc"]
    stored.save([Case(item, "An answer.", item.id != "c", 16) for item in items], folder / CASES)
    lost = {"case": "b", "action": "fallback", "moderation_calls": 4, "seconds": 0.01}
    rows = [
        {**ROW, "case": "a"},
        {**ROW, **lost},
        {**ROW, "case": "c"},
        {**ROW, "arm": "other", "case": "a", "tokens": 1},
    ]
    (folder / ROWS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_searches_of_a_benchmark(bench):
    plan = PlanConfig(costs=COSTS, spread=0, prompt=0)
    mended, lost = from_bench(bench, plan)
    assert (mended.passes, mended.generations, mended.tokens, mended.calls, mended.swapped) == (
        2,
        6,
        240,
        3,
        True,
    )
    assert (lost.calls, lost.swapped, lost.work) == (3, False, 0)
    request = Arrival(0.0, 64, mended, pass_lengths(mended, 0, None))
    assert simulate(plan, [request], replicas=1).answers[0].added == pytest.approx(4.0)


def add_to_rows(folder, **known):
    """As a benchmark would that knew more."""
    rows = [{**json.loads(line), **known} for line in (folder / ROWS).read_text().splitlines()]
    (folder / ROWS).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_searches_of_a_benchmark_that_counted_decode_steps(bench):
    add_to_rows(bench, decode_steps=90)
    mended, lost = from_bench(bench, PlanConfig(costs=COSTS, spread=0, prompt=0))
    assert (mended.steps, lost.steps) == (90, 90)
    assert [max(rows) for rows in pass_lengths(mended, 0, None)] == [45, 45]


@pytest.mark.parametrize(("scoring", "work"), [(0.0, 0.0), (0.3, 0.3), (1e9, None)])
def test_what_the_model_did_not_do_is_done_aside(bench, scoring, work):
    plan = PlanConfig(costs=COSTS, spread=0, prompt=0)
    rest = from_bench(bench, plan)[0].work
    add_to_rows(bench, seconds_scoring=scoring)
    search = from_bench(bench, plan)[0]
    assert search.work == pytest.approx(rest if work is None else work)
    assert search.work + search.aside == pytest.approx(rest)


@pytest.mark.parametrize("beyond", [-0.2, 0.0, 0.5])
def test_seconds_of_a_pass_beyond_its_steps_belong_to_it(bench, beyond):
    plan = PlanConfig(costs=COSTS, spread=0, prompt=0)
    before = from_bench(bench, plan)[0]
    told = 2 * COSTS.calling([40, 40, 40], 0) + beyond
    add_to_rows(bench, seconds_decoding=told)
    search = from_bench(bench, plan)[0]
    assert search.measuring == pytest.approx(max(0.0, beyond))
    assert search.measuring + search.work == pytest.approx(before.work)


def test_seconds_of_another_machine_say_nothing_about_this_one(bench):
    other = COSTS.model_copy(update={"about": {"model": "embedded", "device": "cuda"}})
    assert [search.work for search in from_bench(bench, PlanConfig(costs=other))] == [0, 0]


def test_a_benchmark_and_searches_of_ones_own(bench, tmp_path):
    file = tmp_path / "plan.yml"
    file.write_text("searches: [{passes: 1}]\n")
    with pytest.raises(ConfigError, match="both"):
        with_searches(PlanConfig.load(file), bench)


def test_a_plan_as_data(bench, tmp_path):
    file, costs, picture = (tmp_path / name for name in ("plan.yml", "costs.yml", "plan.svg"))
    file.write_text("samples: 20\ndeadline: 10\ngate: {p50: 0.1, p95: 0.2, per_second: 40}\n")
    costs.write_text(yaml.safe_dump(COSTS.model_dump(mode="json")))
    options = (
        "--config",
        file,
        "--costs",
        costs,
        "--bench",
        bench,
        "--rate",
        5,
        "--flags",
        0.1,
        "--plot",
        picture,
        "--json",
    )
    found = json.loads(run(*options).stdout)
    assert (
        found["settings"]["rate"],
        found["settings"]["flags"],
        len(found["settings"]["searches"]),
    ) == (5, 0.1, 2)
    assert [p["rate"] for p in found["points"]] == [1, 5, 10, 100, 1000, 10000, 100000]
    assert [p["limit"] for p in found["points"]][-1] == "moderation"
    assert 10 < found["breaks"]["rate"] < 40
    assert "<svg" in picture.read_text()


def test_a_plan_in_words(tmp_path):
    file = tmp_path / "plan.yml"
    file.write_text("samples: 20\ndeadline: 10\n")
    said = run("--config", file, "--replicas", 2, "--tokens", 50).stdout
    assert "100,000" in said
    assert "with 2 replicas" in said
    assert all(len(line) <= 80 for line in said.splitlines())


def test_the_example():
    settings = PlanConfig.load(EXAMPLE)
    assert point(settings.model_copy(update={"samples": 50}), settings.rate, 30).limit is None


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--rate", 0], "greater than 0"),
        (["--plot", "plan.txt"], "the name ends with"),
        (["--costs", "none.yml"], "plan measure"),
        (["--bench", "nowhere"], "has no benchmark"),
        (["--bench", "nowhere", "--audit", "gone"], "both say what searches take"),
        (["measure", "--out", "no/such/folder/costs.yml"], "there is no folder"),
    ],
)
def test_what_cannot_be_done(options, told):
    assert told in " ".join(run(*options, code=2).stderr.split())


@pytest.mark.usefixtures("quick")
def test_measuring_into_a_file(tmp_path):
    run("measure", "--rows", 2, "--out", tmp_path / "costs.yml")
    assert Costs.load(tmp_path / "costs.yml").rows == 2


@pytest.mark.usefixtures("quick")
def test_a_validation(tmp_path):
    said = run(
        "validate",
        "--out",
        tmp_path,
        "--seconds",
        1,
        "--load",
        0.5,
        "--rows",
        2,
        "--n",
        2,
        "--flags",
        0.5,
    ).stdout
    assert "flagged, whole answer" in said
    assert (tmp_path / "validation.png").stat().st_size > 1000
    found = json.loads((tmp_path / "validation.json").read_text())
    assert found["capacity"] > 0
    assert len(found["costs"]) == 2
    assert {"predicted", "measured", "p50", "p95"} <= found["rows"][0].keys()


@pytest.fixture
def stopped(quick, tmp_path, monkeypatch):
    """Validate, and press Ctrl-C while the costs of the second run are measured. Return the
    arguments, the state that is left, and the seeds of the costs that are measured."""
    seeds = []

    async def measure(_, *, rows, seed):
        seeds.append(seed)
        if seeds == [0, 1]:
            signal.raise_signal(signal.SIGINT)
        return await measured(quick, rows=rows, seed=seed)

    measured = validation.measure
    monkeypatch.setattr(validation, "measure", measure)
    options = {"out": tmp_path / "out", "seconds": 1, "load": 0.5, "rows": 2, "n": 2, "flags": 0.5}
    arguments = ["validate", "--json", *(x for k, v in options.items() for x in (f"--{k}", v))]
    done = run(*arguments, code=130)
    assert (seeds, done.stdout) == ([0, 1], "")
    assert "the same command goes on after the last finished run" in done.stderr
    [state] = (tmp_path / "out").iterdir()
    return arguments, state, seeds


def test_a_validation_that_was_stopped_measures_nothing_twice(stopped):
    arguments, state, seeds = stopped
    kept = json.loads(state.read_text())
    seeds.clear()
    found = json.loads(run(*arguments).stdout)
    assert seeds == [1]
    assert found["capacity"] == kept["capacity"]
    [run_kept] = kept["runs"]
    assert found["loads"][0] == run_kept["machine_load"]
    assert found["costs"][0]["step"] == run_kept["costs"]["step"]
    assert len(found["costs"]) == 2
    for row in found["rows"]:
        for kind in ("measured", "predicted"):
            assert row[kind][0] == run_kept[kind][row["quantity"]]
    assert {path.name for path in state.parent.iterdir()} == {"validation.json", "validation.png"}


def test_a_validation_is_not_gone_on_with_from_another_or_a_damaged_state(stopped):
    arguments, state, seeds = stopped
    seeds.clear()
    run(*arguments, "--seed", 1, code=130)  # as the first one, after measuring the first run
    assert seeds == [0, 1]
    assert len(list(state.parent.glob("*.part"))) == 2
    state.write_text(state.read_text()[:-5])
    told = run(*arguments, code=2).stderr
    assert "it is damaged" in told
    assert "remove it to begin again" in told


def test_what_a_plan_assumes_is_told(tmp_path):
    costs = tmp_path / "costs.yml"
    costs.write_text(yaml.safe_dump(COSTS.model_dump(mode="json")))
    file = tmp_path / "plan.yml"
    file.write_text("samples: 10\nreplicas: 1\nprice: 3.5\ngate: {p50: 0.1, per_second: 400}\n")
    said = " ".join(run("--config", file, "--tokens", 90, "--target", 9).stdout.split())
    for assumed in (
        "8 billion parameters",
        "an estimate: measure yours",
        "90 tokens",
        "5.3 generations in 1.3 passes: like the benchmark's default",
        "100 ms a call (median), at most 400 calls a second",
        "3.5 for a replica and hour",
        "at most 9 s longer",
    ):
        assert assumed in said
    assert "embedded on cpu, as measured" in run("--config", file, "--costs", costs).stdout


def test_longer_answers_take_longer_searches():
    plan = PlanConfig(samples=100, spread=0)
    short, long = (point(plan.model_copy(update={"tokens": n}), 1.0, 1) for n in (64, 500))
    step = plan.measured.steps[1]
    assert long.flagged["p50"] - short.flagged["p50"] == pytest.approx(436 * step, rel=0.1)
    assert long.load > short.load


def test_a_replica_that_is_always_busy_may_have_room_and_one_that_has_none_says_so():
    plan = PlanConfig(samples=200)
    busy, full = point(plan, 200.0, 1), point(plan, 1e5, 1)
    assert busy.busy > 0.95
    assert 0.2 < busy.load < 0.7
    assert (full.load, full.limit) == (1.0, "rows")
    assert point(plan, 2 * 200.0, 2).load == pytest.approx(busy.load)


def audit_file(folder, records):
    path = folder / "audit.jsonl"
    sink = AuditSink(path)
    for record in records:
        sink.write(record)
    return path


def review(at, action="pass", **numbers):
    return AuditRecord("1", at, action, "", 0.1, None, seconds_gate=0.2, **numbers)


def test_a_plan_of_what_happened(tmp_path):
    """Two hours, the second of which is ten times as busy; one answer of five is flagged."""
    quiet = [review(60.0 * i) for i in range(60)]
    search = {"generations": 7, "decode_passes": 2, "tokens": 300, "decode_steps": 90}
    busy = [
        review(3700.0 + 6.0 * i, "swap" if i % 3 == 0 else "pass", moderation_calls=6, **search)
        for i in range(600)
    ]
    file = audit_file(tmp_path, [*quiet, *busy])
    plan = with_audit(PlanConfig(), file)
    assert plan.rate == pytest.approx(600 / 3600, rel=0.01)
    assert plan.flags == pytest.approx(200 / 660)
    assert plan.gate.p50 == pytest.approx(0.2)
    assert {(s.generations, s.passes, s.tokens, s.calls) for s in plan.searches} == {(7, 2, 300, 4)}
    said = " ".join(run("--audit", file, "--flags", 0.5, "--replicas", 9).stdout.split())
    assert "flagged 50.00%" in said
    assert "with the lengths there, whatever --tokens says" in said.replace(str(file), "")


@pytest.mark.parametrize(
    "records", [[], [review(1.0), review(2.0)], [review(1.0, "swap")]], ids=["none", "good", "one"]
)
def test_an_audit_file_that_tells_too_little(records, tmp_path):
    run("--audit", audit_file(tmp_path, records) if records else tmp_path / "gone", code=2)
