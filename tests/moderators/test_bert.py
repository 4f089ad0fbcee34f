"""The encoder without padding, against the model that it is made of."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertModel

from ttsa_guard.moderators.bert import Int8Linear, PackedBert

PAIRS = [
    ([1, 5, 2], [7, 8, 9, 2]),
    ([1, 2], [4, 2]),
    ([1, *range(3, 40), 2], [*range(10, 90), 2]),
    ([1, 6, 2], [3, 3, 3, 2]),
] * 9


@pytest.fixture(scope="module")
def model() -> BertModel:
    torch.manual_seed(0)
    size = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    return (
        BertModel(BertConfig(vocab_size=100, max_position_embeddings=128, **size))
        .eval()
        .requires_grad_(False)
    )


def hidden(bert: PackedBert, pairs: list[tuple[list[int], list[int]]]) -> list[torch.Tensor]:
    found = dict(bert.hidden(pairs))
    return [found[i] for i in range(len(pairs))]


def as_it_is(model: BertModel, first: list[int], second: list[int]) -> torch.Tensor:
    segments = torch.tensor([[0] * len(first) + [1] * len(second)])
    return model(
        input_ids=torch.tensor([first + second]), token_type_ids=segments
    ).last_hidden_state[0]


def test_float32_gives_the_hidden_states_of_the_model(model: BertModel) -> None:
    for pair, found in zip(PAIRS, hidden(PackedBert(model, int8=False), PAIRS), strict=True):
        torch.testing.assert_close(found, as_it_is(model, *pair), atol=1e-5, rtol=0)


def test_int8_gives_nearly_those(model: BertModel) -> None:
    for pair, found in zip(PAIRS, hidden(PackedBert(model, int8=True), PAIRS), strict=True):
        wanted = as_it_is(model, *pair)
        assert (found - wanted).norm() < 0.03 * wanted.norm()


@pytest.mark.parametrize("int8", [True, False])
def test_a_sequence_does_not_depend_on_its_neighbours(model: BertModel, int8: bool) -> None:
    bert = PackedBert(model, int8=int8)
    together = hidden(bert, PAIRS)
    for i in range(4):
        torch.testing.assert_close(together[i], hidden(bert, [PAIRS[i]])[0], atol=1e-5, rtol=0)


def test_nothing_to_read(model: BertModel) -> None:
    assert hidden(PackedBert(model), []) == []


def test_a_row_of_zeros_stays_one() -> None:
    weight = torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0]])
    linear = Int8Linear(weight, torch.tensor([0.5, -1.0]))
    torch.testing.assert_close(linear(torch.zeros(2, 3)), torch.tensor([[0.5, -1.0]] * 2))
    torch.testing.assert_close(
        linear(torch.tensor([[1.0, 1.0, 4.0]])), torch.tensor([[1.5, -1.0]]), atol=0.03, rtol=0
    )
