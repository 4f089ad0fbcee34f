"""What searches take, as a benchmark has measured it, or as they took in production."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import numpy as np

from ttsa_guard.audit import records
from ttsa_guard.bench.files import CaseResult, RunMeta
from ttsa_guard.bench.measure import Results
from ttsa_guard.errors import ConfigError
from ttsa_guard.plan.config import PlanConfig, SearchCosts
from ttsa_guard.plan.simulation import pass_lengths
from ttsa_guard.record import AuditRecord

_DRAWS = 8
_SEARCHES = 500
"""Most searches of an audit file that a plan draws from."""
_HOUR = 3600.0
ReviewEffort = AuditRecord | CaseResult
"""What one review took, as a guard tells it or a benchmark has written it down."""


def from_bench(folder: Path, plan: PlanConfig) -> tuple[SearchCosts, ...]:
    """Read the searches of the reference arm of a benchmark, one for each flagged answer.

    Seconds beyond those of decoding and moderating are known only where the costs of `plan` were
    measured on the benchmark's device and model; elsewhere they are taken to be none.

    Raises:
        ConfigError: the folder has no benchmark, or none of its searches.
    """
    results = Results.load(folder)
    arm = results.meta.reference
    flagged = {case.id for case in results.cases if case.flagged}
    rows = [row for (name, case), row in results.rows.items() if name == arm and case in flagged]
    if not rows:
        raise ConfigError(
            f"{folder} has no searches of arm {arm!r}", hint="start its run again: it goes on"
        )
    timed = _same(results.meta, plan)
    return tuple(search_of(row, plan, timed=timed) for row in rows)


def with_searches(plan: PlanConfig, folder: Path) -> PlanConfig:
    """Return the plan with the searches of the benchmark in `folder`.

    Raises:
        ConfigError: as `from_bench` does, or the plan's own settings name searches too.
    """
    _no_others(plan, "a benchmark")
    return plan.model_copy(update={"searches": from_bench(folder, plan)})


def with_audit(plan: PlanConfig, file: Path) -> PlanConfig:
    """Return the plan with the traffic of an audit file.

    That is the rate of its busiest hour (of all of it, if it is shorter), the share that was
    flagged, the searches, and the seconds of the gate's first checks. What the plan's own settings
    say stays.

    Raises:
        ConfigError: the file cannot be read, it has too few records for a rate or no flagged one,
            or the plan's own settings name searches too.
    """
    _no_others(plan, "an audit file")
    found = [record for _, record in records(file) if record]
    flagged = [record for record in found if record.action != "pass"]
    times = sorted(record.created for record in found)
    if not flagged or times[-1] == times[0]:
        raise ConfigError(
            f"{file} has {len(found)} reviews, {len(flagged)} of them flagged",
            hint="a plan needs reviews of different moments, and a flagged one among them",
        )
    sampled = random.Random(plan.seed).sample(flagged, min(len(flagged), _SEARCHES))
    p50, p95 = np.quantile([record.seconds_gate for record in found], (0.5, 0.95))
    gate = {"p50": float(p50), "p95": float(p95)}
    traffic = {
        "rate": _busiest(times),
        "flags": len(flagged) / len(found),
        "searches": tuple(search_of(record, plan, timed=False) for record in sampled),
        "gate": plan.first.model_copy(update=gate),
    }
    own = plan.model_fields_set
    return plan.model_copy(update={k: v for k, v in traffic.items() if k not in own})


def _busiest(times: Sequence[float]) -> float:
    """Return the reviews a second in the busiest hour, or in all of a shorter time."""
    whole = times[-1] - times[0]
    if whole <= _HOUR:
        return (len(times) - 1) / whole
    most = max(bisect_right(times, start + _HOUR) - i for i, start in enumerate(times))
    return most / _HOUR


def _no_others(plan: PlanConfig, source: str) -> None:
    if "searches" in plan.model_fields_set:
        raise ConfigError(
            f"searches are both in the settings and in {source}", hint="leave one of them out"
        )


def search_of(effort: ReviewEffort, plan: PlanConfig, *, timed: bool) -> SearchCosts:
    """Return the search of one review.

    Args:
        timed: whether the costs of `plan` hold for where the review took place, so that its
            seconds can be told apart.
    """
    swapped = effort.action == "swap"
    search = SearchCosts(
        passes=effort.decode_passes,
        generations=effort.generations,
        tokens=effort.tokens,
        steps=effort.decode_steps,
        calls=max(0, effort.moderation_calls - 1 - swapped),
        swapped=swapped,
    )
    if not timed:
        return search
    moderated = (1 + swapped) * plan.first.p50 + search.calls * (plan.guide or plan.first).p50
    decoding = _decoding(search, plan)
    measuring = max(0.0, (effort.seconds_decoding or 0.0) - decoding)
    rest = max(0.0, effort.seconds - moderated - decoding - measuring)
    # In older benchmarks nothing tells that work from the rest.
    work = rest if effort.seconds_scoring is None else min(rest, effort.seconds_scoring)
    return search.model_copy(update={"measuring": measuring, "work": work, "aside": rest - work})


def _decoding(search: SearchCosts, plan: PlanConfig) -> float:
    """Return the seconds of its passes where nothing else is going on."""
    rng, costs = random.Random(plan.seed), plan.measured
    draws = [pass_lengths(search, plan.spread, rng) for _ in range(_DRAWS)]
    return mean(sum(costs.calling(lengths, plan.prompt) for lengths in draw) for draw in draws)


def _same(meta: RunMeta, plan: PlanConfig) -> bool:
    """Return whether the plan's costs are of a benchmark's model and device."""
    about = plan.measured.about
    return (about.get("model"), about.get("device")) == (meta.model or "embedded", meta.device)
