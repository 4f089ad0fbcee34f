import pytest

from ttsa_guard.errors import PromptError
from ttsa_guard.messages import Message, Prompt, Soft, Tokens


@pytest.mark.parametrize(
    "turns",
    [
        pytest.param("hello", id="text"),
        pytest.param([{"role": "user", "content": "hello"}], id="mapping"),
        pytest.param([Message("user", "hello")], id="message"),
        pytest.param(
            [
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "hello"}, {"type": "refusal"}],
                }
            ],
            id="parts",
        ),
    ],
)
def test_a_conversation_in_any_form(turns):
    assert Message.conversation(turns) == (Message("user", "hello"),)


def test_a_developer_is_a_system():
    turns = [{"role": "developer", "content": "be kind"}, {"role": "user", "content": "hello"}]
    assert Message.conversation(turns)[0] == Message("system", "be kind")


@pytest.mark.parametrize(
    "turns",
    [
        pytest.param([], id="empty"),
        pytest.param("  ", id="blank"),
        pytest.param([{"role": "assistant", "content": "hello"}], id="no-user"),
        pytest.param([{"role": "wizard", "content": "hello"}], id="unknown-role"),
        pytest.param([{"content": "hello"}], id="no-role"),
        pytest.param([{"role": "user", "content": None}], id="no-content"),
        pytest.param([{"role": "user", "content": 5}], id="number"),
        pytest.param([{"role": "user", "content": ["hello"]}], id="parts-that-are-none"),
        pytest.param(["hello"], id="bare-text-in-a-list"),
    ],
)
def test_a_conversation_without_user_text_is_refused(turns):
    with pytest.raises(PromptError) as caught:
        Message.conversation(turns)
    assert caught.value.hint


def test_a_prompt_knows_its_soft_rows():
    prompt = Prompt((Tokens((1, 2)), Soft((3, 4)), Tokens((5,)), Soft((6,))))
    assert prompt.ids == (1, 2, 3, 4, 5, 6)
    assert prompt.soft_ids == (3, 4, 6)
    assert prompt.soft_positions == (2, 3, 5)
    assert len(prompt) == 6
