from pathlib import Path

import pytest

from ttsa_guard.errors import ModelError
from ttsa_guard.profile import GENERIC, ModelProfile, Opening

PROFILE = ModelProfile(
    model="m", openings=(Opening(text="Grüße", kind="answer", count=3),), floor=-1.5
)


def test_a_profile_survives_its_file(tmp_path):
    PROFILE.save(tmp_path / "new" / "profile.json")
    assert ModelProfile.load(tmp_path / "new" / "profile.json") == PROFILE


@pytest.mark.parametrize("linked", [False, True])
def test_a_profile_is_written_whole_or_not_at_all(tmp_path, monkeypatch, linked):
    def cut_off(path, text, **_):
        path.write_bytes(text[:9].encode())
        raise KeyboardInterrupt

    file, place = tmp_path / "profile.json", tmp_path / "link.json"
    PROFILE.save(file)
    if linked:
        place.symlink_to(file)
    else:
        place = file
    monkeypatch.setattr(Path, "write_text", cut_off)
    with pytest.raises(KeyboardInterrupt):
        GENERIC.save(place)
    assert ModelProfile.load(file) == PROFILE
    monkeypatch.undo()
    GENERIC.save(place)
    assert ModelProfile.load(file) == GENERIC
    assert set(tmp_path.iterdir()) == {file, place}


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(None, id="missing"),
        pytest.param(b"{", id="not-json"),
        pytest.param(b"\xff", id="not-text"),
        pytest.param(b'{"flor": -1}', id="unknown-key"),
        pytest.param(b'{"openings": [{"text": "Hi", "kind": "insult"}]}', id="unknown-kind"),
    ],
)
def test_what_is_not_a_profile_is_refused(tmp_path, content):
    file = tmp_path / "profile.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ModelError, match="is not a model profile") as caught:
        ModelProfile.load(file)
    assert "ttsa-guard profile" in caught.value.hint


def test_the_generic_profile_has_every_kind_and_no_floor():
    assert {o.kind for o in GENERIC.openings} == {"answer", "redirect", "refusal"}
    assert GENERIC.floor is None
