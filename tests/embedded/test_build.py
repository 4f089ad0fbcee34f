"""The recipe of the embedded chat model, at a thousandth of its length."""

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_the_recipe_gives_a_model_that_the_backend_loads(tmp_path):
    command = [
        sys.executable,
        "-m",
        "research.embedded.build",
        "--out",
        str(tmp_path / "chat"),
        "--scale",
        "0.001",
    ]
    sizes = ["--batch", "4", "--hidden", "32", "--layers", "1", "--heads", "2", "--vocab", "400"]
    done = subprocess.run([*command, *sizes], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    from ttsa_guard.backends.transformers import TransformersBackend, TransformersOptions

    backend = TransformersBackend(TransformersOptions(model=str(tmp_path / "chat"), device="cpu"))
    assert backend.context_length == 1024
