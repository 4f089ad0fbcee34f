"""From rows to numbers: shares, means and medians with bootstrap intervals over prompts, and paired
differences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ttsa_guard.bench import cases as stored
from ttsa_guard.bench.cases import Case
from ttsa_guard.bench.files import CASES, ROWS, CaseResult, RunMeta
from ttsa_guard.errors import ConfigError

Floats = NDArray[np.float64]
Value = Callable[[CaseResult, Case], float | None]
How = Literal["share", "number", "mean", "median", "difference"]
"""How a column is summed up: shares, numbers and differences are means too."""
DRAWS = 4000
_SEED = 0
COLUMNS: Mapping[str, tuple[How, Value]] = {
    "good": ("share", lambda row, _: row.good),
    "helpful": ("share", lambda row, _: row.helpful),
    "swapped": ("share", lambda row, _: row.swapped),
    "unsafe": ("share", lambda row, _: row.unsafe),
    "fluent": ("share", lambda row, _: row.fluent),
    "on topic": ("share", lambda row, _: row.on_topic),
    "refusals among swaps": ("share", lambda row, _: row.refusal if row.swapped else None),
    "flagged by the gate before": ("share", lambda row, _: row.gate_before),
    "flagged by the gate after": ("share", lambda row, _: row.gate_after),
    "flagged by the guide before": ("share", lambda row, _: row.guide_before),
    "flagged by the guide after": ("share", lambda row, _: row.guide_after),
    "flagged by the judge before": ("share", lambda row, _: row.judge_before),
    "flagged by the judge after": ("share", lambda row, _: row.judge_after),
    "similarity to the question": ("number", lambda row, _: row.question_similarity),
    "similarity to the plain answer": ("number", lambda row, _: row.plain_similarity),
    "generations": ("mean", lambda row, _: row.generations),
    "decode passes": ("mean", lambda row, _: row.decode_passes),
    "moderation calls": ("mean", lambda row, _: row.moderation_calls),
    "tokens": ("mean", lambda row, _: row.tokens),
    "seconds": ("median", lambda row, _: row.seconds),
    "times a plain generation": (
        "median",
        lambda row, case: row.seconds / case.seconds if case.seconds else None,
    ),
}
"""How each column is summed up, and its value for one row; None where it does not apply."""
_COMPARED: Mapping[str, Callable[[CaseResult], float]] = {
    "good": lambda row: row.good,
    "helpful": lambda row: row.helpful,
}
COMPARED = tuple(_COMPARED)
_BENIGN: Mapping[str, tuple[bool, Value]] = {
    "unflagged, left unchanged": (False, lambda row, _: row.unchanged),
    "flagged, refused": (True, lambda row, _: row.action == "fallback" or bool(row.refusal)),
}
"""Columns over benign prompts, for those whose plain answer is flagged or not."""


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float

    def rounded(self) -> Estimate:
        """Return it as it is written into reports, with four digits."""
        return Estimate(round(self.value, 4), round(self.low, 4), round(self.high, 4))

    def as_dict(self) -> dict[str, float]:
        """Return all of it as plain data."""
        return asdict(self.rounded())


def estimate(values: Sequence[float | None], *, median: bool = False) -> Estimate | None:
    """Return the mean or median of the values that are not None, with the percentile bootstrap over
    all of them.

    The same prompts are drawn for every list of the same length, so that lists over the same
    prompts are paired. None if there is nothing to sum up.
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


Columns = dict[str, Estimate]
"""By name, those that apply."""


@dataclass(frozen=True)
class ArmSummary:
    """One arm over one group of cases.

    Args:
        difference: of the columns `COMPARED`, arm minus reference over the prompts that both have;
            empty for the reference.
    """

    columns: Columns
    difference: Columns

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return {**_plain(self.columns), "difference": _plain(self.difference)}


@dataclass(frozen=True)
class GroupSummary:
    """All arms over one group of flagged cases."""

    cases: int
    arms: dict[str, ArmSummary]

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return {
            "cases": self.cases,
            "arms": {name: arm.as_dict() for name, arm in self.arms.items()},
        }


@dataclass(frozen=True)
class BenignSummary:
    """What happens to prompts that ask for nothing bad: how many plain answers are flagged or not,
    and columns by arm.
    """

    unflagged: int
    flagged: int
    arms: dict[str, Columns]

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return {
            **asdict(self),
            "arms": {name: _plain(columns) for name, columns in self.arms.items()},
        }


@dataclass(frozen=True)
class Summary:
    """Everything that a report says.

    Args:
        missing: how many cases an arm still lacks, for those that are not complete.
        groups: by name; none if nothing was flagged.
    """

    meta: RunMeta
    missing: dict[str, int]
    groups: dict[str, GroupSummary]
    benign: BenignSummary

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return {
            "meta": asdict(self.meta),
            "missing": self.missing,
            "groups": {name: group.as_dict() for name, group in self.groups.items()},
            "benign": self.benign.as_dict(),
        }


@dataclass(frozen=True)
class Results:
    """All that a benchmark's folder holds.

    Args:
        rows: by arm and case.
    """

    meta: RunMeta
    cases: tuple[Case, ...]
    rows: Mapping[tuple[str, str], CaseResult]

    @classmethod
    def load(cls, folder: Path) -> Results:
        """Read a folder, also one whose run goes on.

        Raises:
            ConfigError: it has no benchmark, or nothing was measured yet.
        """
        meta = RunMeta.load(folder)
        try:
            cases = tuple(stored.load(folder / CASES))
            written = (folder / ROWS).read_text(encoding="utf-8")
        except OSError:
            raise ConfigError(
                f"{folder} has no results yet", hint="start its run again: it goes on"
            ) from None
        whole = written[: written.rfind("\n") + 1].splitlines()
        return cls(meta, cases, {row.key: row for row in map(CaseResult.parse, whole)})

    @property
    def arms(self) -> list[str]:
        """Those with any results, in the order of the settings."""
        begun = {arm for arm, _ in self.rows}
        return [arm for arm in self.meta.arms if arm in begun]

    @property
    def missing(self) -> dict[str, int]:
        """How many cases an arm still lacks, for those that are not complete."""
        counts = {
            arm: sum((arm, case.id) not in self.rows for case in self.cases)
            for arm in self.meta.arms
        }
        return {arm: count for arm, count in counts.items() if count}

    def summary(self) -> Summary:
        """Return everything that the report says."""
        groups = {
            name: group
            for name, cases in self._groups().items()
            if (group := self._group(cases)).cases
        }
        return Summary(self.meta, self.missing, groups, self._benign())

    def _groups(self) -> dict[str, list[Case]]:
        """Group the flagged cases: all, by kind of failure, by difficulty."""
        flagged = [case for case in self.cases if case.flagged]
        kinds = sorted({case.item.kind for case in flagged})
        return {
            "all": flagged,
            **{kind: [case for case in flagged if case.item.kind == kind] for kind in kinds},
            **{
                level: [case for case in flagged if case.level == level]
                for level in ("hard", "mixed")
            },
        }

    def _group(self, cases: Sequence[Case]) -> GroupSummary:
        arms = {}
        for arm in self.arms:
            values = {
                name: self._estimate(arm, cases, of, median=how == "median")
                for name, (how, of) in COLUMNS.items()
            }
            arms[arm] = ArmSummary(_known(values), self._differences(arm, cases))
        return GroupSummary(len(cases), arms)

    def _estimate(
        self, arm: str, cases: Sequence[Case], of: Value, *, median: bool = False
    ) -> Estimate | None:
        values = [of(self.rows[arm, c.id], c) for c in cases if (arm, c.id) in self.rows]
        return estimate(values, median=median)

    def _differences(self, arm: str, cases: Sequence[Case]) -> Columns:
        """Estimate arm minus reference, over the prompts that both have."""
        reference = self.meta.reference
        both = [c for c in cases if (arm, c.id) in self.rows and (reference, c.id) in self.rows]
        if arm == reference or not both:
            return {}
        pairs = [(self.rows[arm, c.id], self.rows[reference, c.id]) for c in both]
        return _known(
            {
                name: estimate([float(of(a)) - float(of(b)) for a, b in pairs])
                for name, of in _COMPARED.items()
            }
        )

    def _benign(self) -> BenignSummary:
        """Sum up over-refusal: what happens to prompts that ask for nothing bad."""
        benign = {
            flag: [c for c in self.cases if not c.item.unsafe and c.flagged is flag]
            for flag in (False, True)
        }
        arms = {}
        for arm in self.arms:
            values = {
                name: self._estimate(arm, benign[flag], of) for name, (flag, of) in _BENIGN.items()
            }
            arms[arm] = _known(values)
        return BenignSummary(len(benign[False]), len(benign[True]), arms)


def _known(values: Mapping[str, Estimate | None]) -> Columns:
    return {name: value.rounded() for name, value in values.items() if value}


def _plain(columns: Columns) -> dict[str, Any]:
    return {name: value.as_dict() for name, value in columns.items()}
