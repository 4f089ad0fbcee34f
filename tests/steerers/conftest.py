import pytest

from .embeddings import Recording


@pytest.fixture
def tiny_recording(tiny_model):
    return Recording(tiny_model)
