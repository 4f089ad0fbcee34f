"""Loading a model runs no code that the model brings: no pickles, and remote code only where it is
asked for by name."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from ttsa_guard.errors import ModelError
from ttsa_guard.hf.loading import load
from ttsa_guard.hf.source import Source
from ttsa_guard.moderators.classifier import Classifier, ClassifierOptions
from ttsa_guard.moderators.guard_llm import GuardLLM, GuardLLMOptions

RECIPE = {"prompt": "{answer}", "harmful": {"yes": 1.0}, "harmless": ["no"]}


class Trap:
    """Reading it leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def as_backend(folder):
    return load(Source(str(folder)), device="cpu", dtype=torch.float32)


def as_classifier(folder):
    return Classifier(ClassifierOptions(model=str(folder), categories=["LABEL_1"], device="cpu"))


def as_guard_model(folder):
    return GuardLLM(GuardLLMOptions(model=str(folder), recipe=RECIPE, device="cpu"))


@pytest.fixture(params=[as_backend, as_classifier, as_guard_model])
def loads(request):
    return request.param


@pytest.fixture
def folder(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "model")


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
def test_a_pickle_is_not_read(loads, folder, file):
    sprung = folder / "sprung"
    (folder / "model.safetensors").unlink()
    (folder / file).write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(ModelError) as caught:
        loads(folder)
    assert not sprung.exists()
    if file == "pytorch_model.bin":
        assert "save_pretrained" in caught.value.hint


def test_sound_weights_in_a_pickle_are_not_read_either(folder):
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="safetensors"):
        as_backend(folder)


def test_pickles_cannot_be_asked_for():
    with pytest.raises(ModelError, match="not loaded"):
        load(
            Source("owner/name"), device="cpu", dtype=torch.float32, more={"use_safetensors": False}
        )


def test_an_adapter_in_a_pickle_is_refused(loads, folder):
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Trap(folder / "sprung")))
    with pytest.raises(ModelError, match="adapter"):
        loads(folder)


@pytest.fixture
def own_code(folder):
    """A model with code of its own, which leaves a file when it is run."""
    config = json.loads((folder / "config.json").read_text())
    names = {
        f"Auto{kind}": f"code.Own{kind}"
        for kind in ("Config", "ModelForCausalLM", "ModelForSequenceClassification")
    }
    (folder / "config.json").write_text(
        json.dumps({**config, "model_type": "of its own", "auto_map": names})
    )
    sprung = str(folder / "sprung")
    (folder / "code.py").write_text(
        f"import pathlib\npathlib.Path({sprung!r}).touch()\nraise SystemError('it was run')\n"
    )
    return folder


def test_code_of_a_model_does_not_run(loads, own_code):
    with pytest.raises(ModelError) as caught:
        loads(own_code)
    assert not (own_code / "sprung").exists()
    assert "code of its own" in caught.value.hint


def test_code_of_a_model_runs_where_it_is_asked_for(own_code, monkeypatch, tmp_path):
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    with pytest.raises(ModelError):
        load(
            Source(str(own_code)),
            device="cpu",
            dtype=torch.float32,
            more={"trust_remote_code": True},
        )
    assert (own_code / "sprung").exists()
