"""Run by NeMo Guardrails when it loads this folder. With `import_paths: [ttsa_guard/rails]` it is
not needed."""

from ttsa_guard.nemo import init  # noqa: F401
