"""What searches take, as a benchmark has measured it."""

from __future__ import annotations

import random
from pathlib import Path
from statistics import mean

from ttsa_guard.bench.files import CaseResult, RunMeta
from ttsa_guard.bench.measure import Results
from ttsa_guard.errors import ConfigError
from ttsa_guard.plan.config import PlanConfig, SearchCosts
from ttsa_guard.plan.simulation import pass_lengths
from ttsa_guard.record import AuditRecord

_DRAWS = 8
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
    if "searches" in plan.model_fields_set:
        raise ConfigError(
            "searches are both in the settings and in a benchmark", hint="leave one of them out"
        )
    return plan.model_copy(update={"searches": from_bench(folder, plan)})


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
