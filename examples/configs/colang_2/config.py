"""Run by NeMo Guardrails when it loads this folder. With `import ttsa_guard.rails` in a .co file it
is not needed."""

from ttsa_guard.nemo import init  # noqa: F401
