"""Train the second opinion.

Run it with ``python -m research.embedded.train_second_opinion --data DIR [--out FILE] [--report
FILE]``. DIR holds one folder for each of `lite_data.SOURCES` and `second_opinion_data.SOURCES`. The
embedded world adds its own answers. It needs the extra ``train``. A run takes about three minutes
on one core and prints the numbers of SECOND_OPINION_CARD.md. The same seed and library versions
give the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from research import SHIPPED
from research.embedded import second_opinion_data as data_sets
from research.embedded import word_vectors
from research.embedded.command import run, trainer
from research.embedded.lite_data import UNKNOWN, Example
from research.embedded.second_opinion_report import measure
from research.embedded.train_lite import temperatures
from ttsa_guard.moderators.categories import HEADS
from ttsa_guard.moderators.second_opinion_network import (
    EDGE,
    FIRST_WORD,
    UNKNOWN_WORD,
    WIDTH,
    Layout,
    SecondOpinionNetwork,
    lay_out,
    words,
)

DIMENSIONS, FILTERS, HIDDEN = 48, 96, 32
VOCABULARY = 12_000
LABELLED_WEIGHT = 5.0
"""Weight of a word of a labelled answer in the vocabulary; a word of unlabelled chat has 1."""
LONGEST_TEXT = 1500
"""Characters of a training text that count."""
BATCH = 64
LEARNING_RATE = 2e-3
FORGOTTEN = 0.1
"""Share of the words that are unknown while training, so that no word is relied upon alone."""


class Trained(nn.Module):
    """The network of `second_opinion.SecondOpinionNetwork` while it is trained.

    Args:
        vectors: initial word vectors, [words, dimensions].
    """

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        super().__init__()
        self.vectors = nn.Embedding(*vectors.shape)
        self.vectors.weight.data.copy_(torch.from_numpy(vectors))
        self.filters = nn.Linear(WIDTH * DIMENSIONS, FILTERS)
        self.hidden = nn.Linear(2 * FILTERS, HIDDEN)
        self.heads = nn.Linear(HIDDEN, len(HEADS))

    def forward(self, layout: Layout) -> Tensor:
        """Return the logits of the texts, [texts, 3]."""
        ids = torch.from_numpy(layout.ids)
        if self.training:
            ids = torch.where(
                (torch.rand(ids.shape) < FORGOTTEN) & (ids != EDGE), UNKNOWN_WORD, ids
            )
        near = F.pad(ids, (WIDTH // 2, WIDTH // 2), value=EDGE)
        rows = self.vectors(near)
        filtered = torch.relu(
            self.filters(torch.cat([rows[j : j + ids.numel()] for j in range(WIDTH)], dim=1))
        )
        windows = torch.cat([_pooled(filtered, starts) for starts in layout.starts])
        logits = self.heads(
            F.dropout(
                torch.relu(self.hidden(F.dropout(windows, 0.2, self.training))), 0.2, self.training
            )
        )
        owner = torch.from_numpy(layout.owner)[:, None].expand_as(logits)
        worst = torch.zeros(len(layout.first), len(HEADS)).scatter_reduce(
            0, owner, logits, "amax", include_self=False
        )
        refusal = HEADS.index("refusal")
        first = logits[torch.from_numpy(layout.first)]
        return torch.cat([worst[:, :refusal], first[:, refusal:]], dim=1)

    def stored(self) -> dict[str, NDArray[Any]]:
        """Return the arrays of the file, without the words and the temperature."""
        vectors = self.vectors.weight.detach().numpy()
        scales = (np.abs(vectors).max(axis=1) / 127 + 1e-6).astype(np.float16)
        arrays = {
            "kernels": self.filters.weight.T.reshape(WIDTH, DIMENSIONS, FILTERS),
            "filter_bias": self.filters.bias,
            "hidden": self.hidden.weight.T,
            "hidden_bias": self.hidden.bias,
            "heads": self.heads.weight.T,
            "heads_bias": self.heads.bias,
        }
        small = {name: array.detach().numpy().astype(np.float16) for name, array in arrays.items()}
        steps = (
            np.rint(vectors / scales.astype(np.float32)[:, None]).clip(-127, 127).astype(np.int8)
        )
        return small | {"vectors": steps, "scales": scales}


def _pooled(filtered: Tensor, starts: NDArray[np.int64]) -> Tensor:
    lengths = torch.from_numpy(np.diff(starts, append=len(filtered)))
    return torch.cat(
        [torch.segment_reduce(filtered, how, lengths=lengths, axis=0) for how in ("max", "mean")],
        dim=1,
    )


def fit(
    network: Trained,
    examples: Sequence[Example],
    names: Sequence[str],
    *,
    epochs: int,
    console: Console,
) -> None:
    """Train all heads at once. A label that is not known does not count."""
    index = {word: i for i, word in enumerate(names, FIRST_WORD)}
    labels = torch.tensor(
        [[getattr(e, head) for head in HEADS] for e in examples], dtype=torch.float32
    )
    weights = torch.tensor([e.weight for e in examples])[:, None] * (labels != UNKNOWN)
    batches = _batches(examples)
    optimiser = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, LEARNING_RATE, total_steps=epochs * len(batches), pct_start=0.1
    )
    network.train()
    for epoch in range(epochs):
        total = 0.0
        for number in track(
            torch.randperm(len(batches)).tolist(), f"epoch {epoch + 1} of {epochs}", console=console
        ):
            rows = batches[number]
            logits = network(lay_out([examples[i].text[:LONGEST_TEXT] for i in rows], index))
            losses = F.binary_cross_entropy_with_logits(
                logits, labels[rows].clamp(min=0), reduction="none"
            )
            loss = (losses * weights[rows]).sum() / BATCH
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            total += loss.item()
        console.print(f"epoch {epoch + 1}: loss {total / len(batches):.4f}")
    network.eval()


def _batches(examples: Sequence[Example]) -> list[list[int]]:
    order = torch.randperm(len(examples)).tolist()
    return [order[i : i + BATCH] for i in range(0, len(order), BATCH)]


def build(
    data: Path, out: Path, console: Console, *, domain: int, epochs: int, seed: int
) -> dict[str, Any]:
    """Train, calibrate, write `out` and measure.

    Returns:
        The report.

    Raises:
        UsageError: a data set is missing.
    """
    data_sets.check_layout(data)
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    taken = data_sets.lite_rows(data)
    labelled = list(data_sets.examples(data, taken))
    training = [e for e in labelled if e.part == "train"]
    training += data_sets.world_examples(domain, taken, seed=seed)
    assert not taken & {data_sets.digest(e.text) for e in training}
    console.print(
        f"{len(training)} training rows, none of which is one of the {len(taken)} of the lite"
        " moderator"
    )
    chat = list(data_sets.chat(data))
    counted = [(words(e.text), LABELLED_WEIGHT) for e in training] + [
        (words(text), 1.0) for text in chat
    ]
    names = word_vectors.vocabulary(counted, VOCABULARY)
    chat += [e.text for e in training]
    vectors = word_vectors.learn(chat, names, dimensions=DIMENSIONS, seed=seed, console=console)
    network = Trained(vectors)
    fit(network, training, names, epochs=epochs, console=console)
    validation = [e for e in labelled if e.part == "validation"]
    arrays = network.stored() | {"words": np.frombuffer(" ".join(names).encode(), np.uint8)}
    _write(out, arrays, np.ones(len(HEADS)))
    logits = SecondOpinionNetwork.read(out).logits([e.text for e in validation])
    _write(out, arrays, temperatures(validation, logits))
    return measure([e for e in labelled if e.part == "test"], SecondOpinionNetwork.read(out))


def _write(out: Path, arrays: dict[str, NDArray[Any]], temperature: NDArray[np.float64]) -> None:
    with out.open("wb") as file:
        np.savez_compressed(file, **arrays, temperature=temperature)  # type: ignore[arg-type]


def main() -> None:
    """Run the command line."""
    parser = trainer("Train the second opinion.", SHIPPED / "second_opinion.npz")
    parser.add_argument("--epochs", type=int, default=6)
    run(parser, build)


if __name__ == "__main__":
    main()
