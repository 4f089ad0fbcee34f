"""Say in plain words what a guard with these settings will do, find and cost."""

from __future__ import annotations

from collections.abc import Sequence

from ttsa_guard.budget import Budget
from ttsa_guard.config import GuardConfig, Member
from ttsa_guard.moderators.advice import weak_gate
from ttsa_guard.moderators.measured import MEASURED


def expectations(config: GuardConfig) -> dict[str, str]:
    """Return what to expect, by subject: model, gate, guide, an answer that is flagged or not."""
    config = config.resolved()
    weak = weak_gate(config.model, [member.use for member in config.gate])
    audit = config.audit
    return {
        "model": f"{config.model}, run by {config.backend.use}",
        "gate": _panel(config.gate, config.combine) + (f"; {weak}" if weak else ""),
        "guide": _panel(config.guide, config.guide_combine),
        "an unflagged answer": (
            f"one call of the gate, at most {config.gate_seconds:g} s, and no call of the model"
        ),
        "a flagged answer": _cost(config.budget),
        "records": str(audit.path or "none are written")
        + (", with the texts" if audit.path and audit.texts else ""),
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
    limits = {
        "candidates": budget.generations,
        "calls of the guide": budget.moderation_calls,
        "batches one after another": budget.decode_passes,
        "new tokens": budget.tokens,
    }
    parts = [f"{limit} {what}" for what, limit in limits.items() if limit is not None]
    most = ", ".join([f"at most {budget.seconds:g} s", *parts])
    return f"{most}; after that the user reads the fallback text"
