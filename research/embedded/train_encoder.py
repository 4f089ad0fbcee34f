"""Train the moderator `encoder`.

Run it with ``python -m research.embedded.train_encoder --data DIR [--out FILE]``. It trains
low-rank changes (LoRA) of the upper layers of MiniLM and four heads, in bfloat16 on one thread.
Then it fits a logistic model of these logits and those of lite, on the validation prompts. A run
takes some 20 minutes on a core with bfloat16 arithmetic. The same data, seed, kind of processor and
version of torch give the same weights to the last bit.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional

from research.embedded import encoder_data
from research.embedded.encoder_data import labels
from research.embedded.lite_data import UNKNOWN, Example
from ttsa_guard.errors import TTSAError
from ttsa_guard.moderators import minilm
from ttsa_guard.moderators.encoder import (
    HEADS,
    LOW_RANK,
    WEIGHTS,
    Floats,
    Window,
    cut,
    lite_logits,
    read,
    tokenised,
)

RANK = 16
SCALE = 2.0
FROZEN = 2
"""Number of lower layers that are not changed."""
BATCH = 32
SORTED = 40
"""Number of batches whose rows are sorted by length together, so that little is padded."""
RATES = (8e-4, 1e-3)
"""Highest learning rates of the low-rank changes and of the heads."""
WARM_UP = 100
TRAINED_LENGTH = 96
"""Tokens of a window in training. Longer windows cost more; in use they are read just as well."""
HEAD_WEIGHTS = (1.0, 1.0, 0.5, 0.5)
FALSE_ALARMS = 0.01
"""Harm and toxicity each flag at most this share of harmless validation rows at 0.5."""


_NEVER = -30.0


class Learner(nn.Module):
    """What `encoder.Network` computes, for training: MiniLM in bfloat16, and the heads."""

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body = body
        self.heads = nn.Linear(3 * minilm.UNITS, len(HEADS))

    def forward(self, ids: torch.Tensor, answer: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Logits [windows, 4] of token ids, of which are the answer's, and which are any; each
        [windows, tokens]."""
        hidden = self.body(
            input_ids=ids, token_type_ids=answer, attention_mask=mask
        ).last_hidden_state.float()
        own = answer[..., None].float()
        mean = (hidden * own).sum(1) / own.sum(1)
        highest = hidden.masked_fill(own == 0, _NEVER).amax(1)
        found: torch.Tensor = self.heads(torch.cat([mean, highest, hidden[:, 0]], 1))
        return found


def padded(windows: Sequence[Window]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, which are the answer's, and which are any, each [windows, tokens]."""
    longest = max(len(head) + len(rest) for head, rest in windows)
    ids = torch.zeros((3, len(windows), longest), dtype=torch.long)
    for i, (head, rest) in enumerate(windows):
        end = len(head) + len(rest)
        ids[0, i, :end] = torch.tensor(head + rest)
        ids[1, i, len(head) : end] = 1
        ids[2, i, :end] = 1
    return ids[0], ids[1], ids[2]


class LowRank(nn.Module):
    """A linear map that is not trained, plus a low-rank change that is trained.

    Args:
        base: the map, from [..., in] to [..., out].
    """

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.a = nn.Parameter(torch.randn(RANK, base.in_features) / base.in_features**0.5)
        self.b = nn.Parameter(torch.zeros(base.out_features, RANK))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the changed map of `x`, from [..., in] to [..., out]."""
        change = functional.linear(
            functional.linear(x, self.a.to(x.dtype)), (self.b * SCALE).to(x.dtype)
        )
        found: torch.Tensor = self.base(x) + change
        return found


def untrained() -> tuple[Any, Learner]:
    """Return the network with changes that are zero."""
    tokenizer, body = minilm.load()
    body.config._attn_implementation = "eager"  # at these lengths it is twice as fast backwards
    network = Learner(body.to(torch.bfloat16))
    nn.init.normal_(network.heads.weight, std=0.01)
    nn.init.zeros_(network.heads.bias)
    for layer in body.encoder.layer[FROZEN:]:
        for name in LOW_RANK:
            layer.set_submodule(name, LowRank(layer.get_submodule(name)))
    return tokenizer, network


def stored(network: Learner) -> dict[str, Floats]:
    """Return what is trained, under the names that `encoder.changed` reads.

    The changes are in half precision.
    """
    found = {f"heads.{key}": value.numpy() for key, value in network.heads.state_dict().items()}
    for i, layer in enumerate(network.body.encoder.layer[FROZEN:], FROZEN):
        for name in LOW_RANK:
            low = layer.get_submodule(name)
            found[f"{i}.{name}.a"] = low.a.detach().numpy().astype(np.float16)
            found[f"{i}.{name}.b"] = (low.b.detach() * SCALE).numpy().astype(np.float16)
    return found


def batches(sizes: Sequence[int], epochs: int, rng: random.Random) -> Iterator[list[int]]:
    """Yield the indices of the rows of every step.

    Each epoch has all rows, and the rows of a batch have similar lengths.
    """
    for _ in range(epochs):
        order = list(range(len(sizes)))
        rng.shuffle(order)
        found = []
        for i in range(0, len(order), BATCH * SORTED):
            some = sorted(order[i : i + BATCH * SORTED], key=lambda j: sizes[j])
            found += [some[k : k + BATCH] for k in range(0, len(some), BATCH)]
        rng.shuffle(found)
        yield from found


def train(rows: Sequence[Example], console: Console, *, epochs: int, seed: int) -> Learner:
    """Return the network after `epochs` over `rows`.

    Of a long answer another window is read every time, the first one most often.
    """
    torch.manual_seed(seed)
    tokenizer, network = untrained()
    rng = random.Random(seed)
    encoded = tokenised(tokenizer, [e.prompt for e in rows], [e.text for e in rows])
    pairs = [cut(*pair, length=TRAINED_LENGTH) for pair in encoded]
    truth = torch.tensor([labels(e) for e in rows])
    weights = torch.tensor([e.weight for e in rows])[:, None] * torch.tensor(HEAD_WEIGHTS)
    changes = [p for name, p in network.named_parameters() if name.endswith((".a", ".b"))]
    groups = [{"params": changes}, {"params": [*network.heads.parameters()]}]
    optimiser = torch.optim.AdamW(groups, weight_decay=0.01)
    plan = list(batches([len(w[0][0]) + len(w[0][1]) for w in pairs], epochs, rng))
    mean = 0.0
    for step, chosen in enumerate(plan):
        factor = min(1.0, (step + 1) / WARM_UP) * (0.5 + 0.5 * np.cos(np.pi * step / len(plan)))
        for group, rate in zip(optimiser.param_groups, RATES, strict=True):
            group["lr"] = rate * factor
        windows = [pairs[j][0] if rng.random() < 0.6 else rng.choice(pairs[j]) for j in chosen]
        counts = (truth[chosen] != UNKNOWN) * weights[chosen]
        wrong = functional.binary_cross_entropy_with_logits(
            network(*padded(windows)), truth[chosen].clamp(min=0).float(), reduction="none"
        )
        loss = (wrong * counts).sum() / len(chosen)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(changes, 1.0)
        optimiser.step()
        mean = 0.98 * mean + 0.02 * loss.item() if step else loss.item()
        if step % 50 == 0:
            console.print(f"step {step} of {len(plan)}: loss {mean:.4f}")
    return network


def calibration(logits: Floats, lite: NDArray[np.float64], examples: Sequence[Example]) -> Floats:
    """Return weights and biases [3, 4] for `encoder.calibrated`.

    They are a logistic model for each head, fitted on the validation rows.
    """
    found = np.zeros((3, len(HEADS)), np.float32)
    truth = np.array([labels(e) for e in examples])
    for k in range(len(HEADS)):
        known = truth[:, k] != UNKNOWN
        beside = [lite[:, k]] if k < lite.shape[1] else []
        model = LogisticRegression(C=1.0).fit(
            np.stack([logits[:, k], *beside], 1)[known], truth[known, k]
        )
        found[: 1 + len(beside), k], found[2, k] = model.coef_[0], model.intercept_[0]
    return found


def build(data: Path, out: Path, console: Console, *, epochs: int, seed: int) -> dict[str, Any]:
    """Train, write `out`, calibrate with what was written, and write again.

    Returns:
        The calibration.
    """
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    examples = encoder_data.examples(data)
    rows = encoder_data.training(examples, seed=seed)
    console.print(f"{len(rows)} rows")
    weights = stored(train(rows, console, epochs=epochs, seed=seed))
    _write(out, weights | {"calibration": np.zeros((3, len(HEADS)), np.float32)})
    network, _ = read(out)
    held = [e for e in examples if e.part == "validation"]
    texts = [e.text for e in held]
    found = calibration(network.logits(texts, [e.prompt for e in held]), lite_logits(texts), held)
    _write(out, weights | {"calibration": found})
    return {"calibration": found.round(3).tolist()}


def _write(out: Path, arrays: dict[str, Floats]) -> None:
    with out.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Train the encoder moderator.")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with one folder for each data set"
    )
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="where the weights go")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    console = Console()
    try:
        found = build(args.data, args.out, console, epochs=args.epochs, seed=args.seed)
    except TTSAError as error:
        raise SystemExit(f"error: {error}") from None
    console.print_json(json.dumps(found))


if __name__ == "__main__":
    main()
