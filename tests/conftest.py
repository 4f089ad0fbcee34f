import os

# Before anything imports transformers, nemoguardrails or torch: they read these once.
os.environ.update(HF_HUB_OFFLINE="1", NEMO_GUARDRAILS_NO_USAGE_STATS="1", OMP_WAIT_POLICY="PASSIVE")

import pytest

from ttsa_guard import testing


@pytest.fixture(autouse=True)
def no_network():
    with testing.no_network():
        yield
