import pytest

from ttsa_guard.errors import ModelError
from ttsa_guard.profile import GENERIC, ModelProfile, Opening

PROFILE = ModelProfile(
    model="m", openings=(Opening(text="Grüße", kind="answer", count=3),), floor=-1.5
)


def test_a_profile_survives_its_file(tmp_path):
    PROFILE.save(tmp_path / "new" / "profile.json")
    assert ModelProfile.load(tmp_path / "new" / "profile.json") == PROFILE


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
