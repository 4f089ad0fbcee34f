"""Run by NeMo Guardrails when a configuration imports this folder; sets up the guard."""

from ttsa_guard.nemo import init  # noqa: F401
