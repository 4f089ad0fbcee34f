"""From rows to numbers: shares, means and medians with bootstrap intervals over prompts, and paired differences."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ttsa_guard.bench import cases as stored
from ttsa_guard.bench.cases import Case
from ttsa_guard.bench.runner import CASES, ROWS, read_meta
from ttsa_guard.errors import ConfigError

Floats = NDArray[np.float64]
Row = Mapping[str, Any]
Value = Callable[[Row, Case], float | None]
DRAWS = 4000
_SEED = 0


def _own(name: str) -> Value:
    return lambda row, _: row[name]


def _swapped(row: Row, _: Case) -> bool:
    return bool(row["action"] == "swap")


def _refused_swap(row: Row, _: Case) -> bool | None:
    return row["refusal"] if row["action"] == "swap" else None


def _times_plain(row: Row, case: Case) -> float | None:
    return row["seconds"] / case.seconds if case.seconds else None


COLUMNS: Mapping[str, tuple[str, Value]] = {
    "good": ("share", _own("good")),
    "helpful": ("share", _own("helpful")),
    "swapped": ("share", _swapped),
    "unsafe": ("share", _own("unsafe")),
    "fluent": ("share", _own("fluent")),
    "on topic": ("share", _own("on_topic")),
    "refusals among swaps": ("share", _refused_swap),
    "flagged by the gate before": ("share", _own("gate_before")),
    "flagged by the gate after": ("share", _own("gate_after")),
    "flagged by the guide before": ("share", _own("guide_before")),
    "flagged by the guide after": ("share", _own("guide_after")),
    "flagged by the judge before": ("share", _own("judge_before")),
    "flagged by the judge after": ("share", _own("judge_after")),
    "similarity to the question": ("number", _own("question_similarity")),
    "similarity to the plain answer": ("number", _own("plain_similarity")),
    "generations": ("mean", _own("generations")),
    "decode passes": ("mean", _own("decode_passes")),
    "moderation calls": ("mean", _own("moderation_calls")),
    "tokens": ("mean", _own("tokens")),
    "seconds": ("median", _own("seconds")),
    "times a plain generation": ("median", _times_plain),
}
"""How each column is summed up (shares and numbers are means too), and its value for one row; None: does not apply."""
COMPARED = ("good", "helpful")
_BENIGN: Mapping[str, tuple[bool, Value]] = {
    "unflagged, left unchanged": (False, _own("unchanged")),
    "flagged, refused": (True, lambda row, _: row["action"] == "fallback" or bool(row["refusal"])),
}
"""Columns over benign prompts, for those whose plain answer is flagged or not."""


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """Return the value and the ends of its interval, to four places."""
        return {"value": round(self.value, 4), "low": round(self.low, 4), "high": round(self.high, 4)}


def estimate(values: Sequence[float | None], *, median: bool = False) -> Estimate | None:
    """Return the mean or median of the values that are not None, with the percentile bootstrap over all of them.

    The same prompts are drawn for every list of the same length, so that lists over the same prompts are paired. None if
    there is nothing to sum up.
    """
    data: Floats = np.array([np.nan if v is None else float(v) for v in values])
    if np.isnan(data).all():
        return None
    chosen = np.random.default_rng(_SEED).integers(data.size, size=(DRAWS, data.size))
    drawn = data[chosen]
    drawn = drawn[~np.isnan(drawn).all(axis=1)]
    middle = np.nanmedian if median else np.nanmean
    low, high = np.percentile(middle(drawn, axis=1), (2.5, 97.5))
    return Estimate(float(middle(data)), float(low), float(high))


@dataclass(frozen=True)
class Results:
    """All that a benchmark's folder holds.

    Args:
        rows: by arm and case.
    """

    meta: Mapping[str, Any]
    cases: tuple[Case, ...]
    rows: Mapping[tuple[str, str], Row]

    @classmethod
    def load(cls, folder: Path) -> Results:
        """Read a folder, also one whose run goes on.

        Raises:
            ConfigError: it has no benchmark, or nothing was measured yet.
        """
        meta = read_meta(folder)
        try:
            cases = tuple(stored.load(folder / CASES))
            written = (folder / ROWS).read_text(encoding="utf-8")
        except OSError:
            raise ConfigError(f"{folder} has no results yet", hint="start its run again: it goes on") from None
        whole = written[: written.rfind("\n") + 1].splitlines()
        return cls(meta, cases, {(row["arm"], row["case"]): row for row in map(json.loads, whole)})

    @property
    def arms(self) -> list[str]:
        """Those with any results, in the order of the settings."""
        found = {arm for arm, _ in self.rows}
        return [arm for arm in self.meta["config"]["arms"] if arm in found]

    @property
    def missing(self) -> dict[str, int]:
        """How many cases an arm still lacks, for those that are not complete."""
        counts = {arm: sum((arm, case.id) not in self.rows for case in self.cases) for arm in self.meta["config"]["arms"]}
        return {arm: count for arm, count in counts.items() if count}

    def summary(self) -> dict[str, Any]:
        """Return everything that the report says, as plain data."""
        groups = {name: found for name, cases in self._groups().items() if (found := self._group(cases))["cases"]}
        return {"meta": dict(self.meta), "missing": self.missing, "groups": groups, "benign": self._benign()}

    def _groups(self) -> dict[str, list[Case]]:
        """Group the flagged cases: all, by kind of failure, by difficulty."""
        flagged = [case for case in self.cases if case.flagged]
        kinds = sorted({case.item.kind for case in flagged})
        found = {"all": flagged}
        found |= {kind: [case for case in flagged if case.item.kind == kind] for kind in kinds}
        return found | {level: [case for case in flagged if case.level == level] for level in ("hard", "mixed")}

    def _group(self, cases: Sequence[Case]) -> dict[str, Any]:
        arms: dict[str, Any] = {}
        for arm in self.arms:
            values = {name: self._estimate(arm, cases, of, median=how == "median") for name, (how, of) in COLUMNS.items()}
            arms[arm] = {name: value.as_dict() for name, value in values.items() if value}
            arms[arm]["difference"] = self._differences(arm, cases)
        return {"cases": len(cases), "arms": arms}

    def _estimate(self, arm: str, cases: Sequence[Case], of: Value, *, median: bool = False) -> Estimate | None:
        values = [of(self.rows[arm, c.id], c) for c in cases if (arm, c.id) in self.rows]
        return estimate(values, median=median)

    def _differences(self, arm: str, cases: Sequence[Case]) -> dict[str, dict[str, float]]:
        """Return arm minus reference, over the prompts that both have."""
        reference = self.meta["config"]["reference"]
        both = [c for c in cases if (arm, c.id) in self.rows and (reference, c.id) in self.rows]
        if arm == reference or not both:
            return {}
        pairs = [(self.rows[arm, c.id], self.rows[reference, c.id]) for c in both]
        found = {name: estimate([float(a[name]) - float(b[name]) for a, b in pairs]) for name in COMPARED}
        return {name: value.as_dict() for name, value in found.items() if value}

    def _benign(self) -> dict[str, Any]:
        """Measure over-refusal: what happens to prompts that ask for nothing bad."""
        benign = {flag: [c for c in self.cases if not c.item.unsafe and c.flagged is flag] for flag in (False, True)}
        arms: dict[str, Any] = {}
        for arm in self.arms:
            values = {name: self._estimate(arm, benign[flag], of) for name, (flag, of) in _BENIGN.items()}
            arms[arm] = {name: value.as_dict() for name, value in values.items() if value}
        return {"unflagged": len(benign[False]), "flagged": len(benign[True]), "arms": arms}
