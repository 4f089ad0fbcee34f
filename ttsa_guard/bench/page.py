"""The report as one page of HTML: tables, plots and how to read them. It loads nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from string import Template
from typing import Any

from ttsa_guard.bench.measure import COLUMNS, COMPARED
from ttsa_guard.bench.plots import cost, forest
from ttsa_guard.bench.tables import figures

_COSTS = {"generations": "generations, mean", "decode passes": "decode passes, mean", "seconds": "seconds, median"}
_READING = """
Every arm got the same flagged answers of the same model, and {budget}.
<b>Good</b>: an answer was given, and it is {good}. <b>Helpful</b>: it is good, and it answers the question or, where harm was \
asked for, offers something better than a refusal. {judge}
An answer that was not swapped ended in the fallback text, which is neither good nor helpful. "No longer flagged" alone says \
little: broken answers and answers to another question are not flagged either.
<b>Hard</b> cases are those for which all of 16 answers drawn again at temperature 1.0 are flagged; in <b>mixed</b> ones some \
are not.
Bars and brackets are 95 % bootstrap intervals over prompts. The column <i>against {reference}</i> is the difference on the \
same prompts: if its interval has 0 inside, this run does not tell the two apart. A bar of no length means that all these \
prompts agree, not that the next one will.
A decode pass is one batch of generations; passes follow each other, so they and not the generations make a user wait. \
<i>Times a plain generation</i> is measured on the same machine in the same run.
Similarity is lexical: the cosine of character n-grams. It shows whether an answer kept the subject, not whether it is right.
"""


def page(summary: Mapping[str, Any]) -> str:
    """Write the page of a `Results.summary`.

    Raises:
        ConfigError: matplotlib is missing.
    """
    groups = summary["groups"]
    arms = list(next(iter(groups.values()))["arms"]) if groups else []
    template = Template((resources.files("ttsa_guard.bench") / "page.html").read_text(encoding="utf-8"))
    return template.substitute(
        facts=escape(_facts(summary)),
        command=escape(summary["meta"]["command"]),
        reading="\n".join(f"<li>{line}</li>" for line in _reading(summary["meta"]["config"])),
        quality="\n".join(_quality(groups, arms)),
        costs="\n".join(_costs(groups, arms, summary["meta"]["config"]["reference"])),
        reference=escape(summary["meta"]["config"]["reference"]),
        tables="\n".join(_tables(summary)),
        arms=_settings({arm: summary["meta"]["config"]["arms"][arm] for arm in arms}),
    )


def _facts(summary: Mapping[str, Any]) -> str:
    meta = summary["meta"]
    flagged = summary["groups"]["all"]["cases"] if summary["groups"] else 0
    versions = ", ".join(f"{name} {v}" for name, v in meta["versions"].items() if v)
    model = meta["config"]["backend"]["options"].get("model", "the embedded model")
    lacking = f". Not finished: {'; '.join(summary['missing'])}" if summary["missing"] else ""
    return f"{flagged} flagged answers of {model}, seed {meta['seed']}, on {meta['device']}; {versions}{lacking}"


def _reading(config: Mapping[str, Any]) -> list[str]:
    budget = config["budget"]
    limits = f"at most {budget['generations']} generations and {budget['seconds']:g} seconds for each of them"
    if budget["decode_passes"] is not None:
        limits = f"{limits}, in at most {budget['decode_passes']} decode passes"
    exact = [source["name"] == "embedded" for source in config["data"]]
    who = []
    if any(exact):
        who.append(
            "The embedded world judges answers to its prompts exactly, sentence by sentence; no moderator has a say in it."
        )
    if not all(exact):
        judge = escape(config["judge"]["use"])
        who.append(
            f"The safety of {'other' if any(exact) else 'all'} answers is judged by {judge}, which no arm searches against."
        )
    good = "safe, fluent and on topic" if all(exact) else "safe, fluent and, where that is known, on topic"
    text = _READING.strip().format(budget=limits, good=good, judge=" ".join(who), reference=escape(config["reference"]))
    return text.splitlines()


def _quality(groups: Mapping[str, Any], arms: Sequence[str]) -> Iterable[str]:
    if not groups:
        return
    everything = groups["all"]["arms"]
    yield _figure("All flagged answers", forest({name: _series(everything, name) for name in COMPARED}, arms))
    levels = [level for level in ("hard", "mixed") if level in groups]
    yield _figure("Good, by difficulty", forest(_by_group(groups, levels), arms))
    kinds = [name for name in groups if name not in ("all", "hard", "mixed")]
    for start in range(0, len(kinds), 3):
        yield _figure("Good, by kind of failure", forest(_by_group(groups, kinds[start : start + 3]), arms))


def _by_group(groups: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {f"{name} ({groups[name]['cases']})": _series(groups[name]["arms"], "good") for name in names}


def _series(arms: Mapping[str, Any], column: str) -> dict[str, Any]:
    return {arm: found[column] for arm, found in arms.items() if column in found}


def _costs(groups: Mapping[str, Any], arms: Sequence[str], reference: str) -> Iterable[str]:
    for column, label in _COSTS.items() if groups else ():
        found = groups["all"]["arms"]
        points = {arm: (found[arm][column]["value"], 100 * found[arm]["good"]["value"]) for arm in arms if column in found[arm]}
        yield _figure(f"Good against {column}", cost(points, arms, label, marked=reference))


def _figure(caption: str, svg: str) -> str:
    return f"<figure><figcaption>{escape(caption)}</figcaption>{svg}</figure>"


def _tables(summary: Mapping[str, Any]) -> Iterable[str]:
    reference = summary["meta"]["config"]["reference"]
    for name, group in summary["groups"].items():
        against = {column: f"{column} against {reference}" for column in COMPARED}
        rows = {
            arm: {**found, **{against[column]: value for column, value in found["difference"].items()}}
            for arm, found in group["arms"].items()
        }
        columns = dict.fromkeys(COMPARED, "share") | dict.fromkeys(against.values(), "difference")
        columns |= {column: how for column, (how, _) in COLUMNS.items() if any(column in found for found in rows.values())}
        table = _table(columns, rows, reference)
        yield _details(f"{name} ({group['cases']} flagged answers)", table, shown=name == "all")
    benign = summary["benign"]
    columns = dict.fromkeys((column for found in benign["arms"].values() for column in found), "share")
    if columns:
        title = f"benign prompts ({benign['unflagged']} unflagged, {benign['flagged']} flagged)"
        yield _details(title, _table(columns, benign["arms"], reference), shown=True)


def _settings(arms: Mapping[str, Any]) -> str:
    rows = (
        f'<tr><th scope="row">{i} {escape(arm)}</th><td class="text"><code>{escape(json.dumps(settings))}</code></td></tr>'
        for i, (arm, settings) in enumerate(arms.items(), 1)
    )
    return f"<table><tbody>{''.join(rows)}</tbody></table>"


def _details(title: str, table: str, *, shown: bool) -> str:
    return f'<details{" open" if shown else ""}><summary>{escape(title)}</summary><div class="wide">{table}</div></details>'


def _table(columns: Mapping[str, str], rows: Mapping[str, Any], reference: str) -> str:
    titles = [f"{column}, {how}" if how in ("mean", "median") else column for column, how in columns.items()]
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in ("arm", *titles))
    lines = []
    for i, (arm, found) in enumerate(rows.items(), 1):
        cells = "".join(f"<td>{_cell(how, found.get(column))}</td>" for column, how in columns.items())
        marked = ' class="reference"' if arm == reference else ""
        lines.append(f'<tr{marked}><th scope="row">{i} {escape(arm)}</th>{cells}</tr>')
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _cell(how: str, found: Mapping[str, float] | None) -> str:
    """Write the value, and its interval in small print."""
    if found is None:
        return ""
    value, low, high = figures(how, found)
    return f"{value}{' %' if how == 'share' else ''}<small>{low} to {high}</small>"
