"""The alerting rules and the dashboard of examples/prometheus ask for what the guard measures."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

EXAMPLE = Path(__file__).parent.parent / "examples" / "prometheus"
DASHBOARD = json.loads((EXAMPLE / "dashboard.json").read_text(encoding="utf-8"))
RULES = yaml.safe_load((EXAMPLE / "alerts.yml").read_text(encoding="utf-8"))["groups"][0]["rules"]
# A review of each kind and a request, in a process of its own: its metrics are set but once.
PROGRAM = """
import asyncio
from ttsa_guard import telemetry
from ttsa_guard.serve.metrics import exporter
from ttsa_guard.testing import scripted_guard
text = exporter()
for answer in ("A decent answer to your question.", "a bad answer"):
    asyncio.run(scripted_guard([]).review("hello", answer))
telemetry.request_begun()
telemetry.request_ended(200, 0.1)
print(text().decode())
"""


def queries():
    for rule in RULES:
        yield rule["alert"], rule["expr"]
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield f"{panel['title']}, {target['refId']}", target["expr"]


@pytest.fixture(scope="module")
def measured():
    """The labels of each metric, by its name."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    labels = {}
    for name, found in re.findall(r"^(ttsa_guard_\w+?)(?:{(.*)})? ", done.stdout, re.MULTILINE):
        labels.setdefault(name, set()).update(re.findall(r'(\w+)="', found))
    return labels


@pytest.mark.parametrize("query", [q for _, q in queries()], ids=[name for name, _ in queries()])
def test_every_query_is_about_what_is_measured(query, measured):
    used = re.findall(r"(ttsa_guard_\w+)(?:{(.*?)})?", query)
    assert used
    for name, chosen in used:
        assert name in measured
        assert set(re.findall(r"(\w+)!?=", chosen)) <= measured[name]
    grouped = {w for part in re.findall(r"by \((.*?)\)", query) for w in re.split(", *", part)}
    assert grouped <= set().union(*(measured[name] for name, _ in used), {"instance"})
    assert all(query.count(a) == query.count(b) for a, b in ("()", "{}", "[]"))
    assert set(re.findall(r'action!?="(\w*)"', query)) <= {"pass", "swap", "fallback"}


def test_a_rule_says_what_is_wrong_and_what_to_do():
    for rule in RULES:
        assert rule["annotations"].keys() == {"summary", "description"}
        assert rule["labels"]["severity"] in ("page", "ticket")
    assert len({rule["alert"] for rule in RULES}) == len(RULES)


def test_the_panels_have_places_of_their_own_and_say_what_they_show():
    panels = DASHBOARD["panels"]
    taken = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(taken)) == len(taken)
    assert max(x for x, _ in taken) < 24
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(panel["title"] and panel["description"] for panel in panels)
