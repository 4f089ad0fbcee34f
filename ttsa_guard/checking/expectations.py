"""Say in plain words what a guard with these settings will do, find and cost."""

from __future__ import annotations

from collections.abc import Sequence

from ttsa_guard.budget import Budget
from ttsa_guard.config import GuardConfig, Member
from ttsa_guard.moderators.advice import weak_gate
from ttsa_guard.moderators.measured import MEASURED


def expectations(config: GuardConfig) -> dict[str, str]:
    """Return what to expect, by subject: model, gate, guide, an answer that is flagged or not."""
    found = config.resolved()
    weak = weak_gate(found.model, [member.use for member in found.gate])
    return {
        "model": f"{found.model}, run by {found.backend.use}",
        "gate": _panel(found.gate, found.combine) + (f"; {weak}" if weak else ""),
        "guide": _panel(found.guide, found.guide_combine),
        "an unflagged answer": (
            f"one call of the gate, at most {found.gate_seconds:g} s, and no call of the model"
        ),
        "a flagged answer": _cost(found.budget),
        "records": str(found.audit.path or "none are written")
        + (", with the texts" if found.audit.path and found.audit.texts else ""),
    }


def _panel(members: Sequence[Member], combine: str) -> str:
    told = "; ".join(
        f"{m.use} ({MEASURED[m.use]})"
        if m.use in MEASURED and not m.options.get("threshold")
        else f"{m.use} (not measured here)"
        for m in members
    )
    return told if len(members) == 1 else f"{told}; it flags by {combine!r}"


def _cost(budget: Budget) -> str:
    more = [
        f"{limit} {what}"
        for limit, what in (
            (budget.decode_passes, "batches one after another"),
            (budget.tokens, "new tokens"),
        )
        if limit is not None
    ]
    parts = [f"{budget.generations} candidates", f"{budget.moderation_calls} calls of the guide"]
    return (
        f"at most {budget.seconds:g} s, {', '.join([*parts, *more])}; after that the user reads the"
        " fallback text"
    )
