"""Run by NeMo Guardrails when it loads this folder; sets up the guard."""

from ttsa_guard.nemo import init  # noqa: F401
