"""Train a doctor, which is a low-rank adapter of the patient, by flow or by direct preference.

By flow, the loss of a pair is the variance of the potentials of each answer (see `flow`), and the
hinge on the values of the first states in which the two answers differ. That is the double sum
over (L + 1)^2, so that long answers do not weigh more. The value head is used in training only.

By direct preference (DPO) it is -log sigmoid(beta (d(better) - d(worse))), where d is the
log-ratio of an answer between doctor and patient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import logsigmoid

from research.llmdoctor import flow
from research.llmdoctor.faces import Pairs
from research.llmdoctor.rewards import rewards
from ttsa_guard.backends.local.controlled import fingerprint
from ttsa_guard.steerers.prosocial.adapter import Adapter, AdapterShape, Stored
from ttsa_guard.steerers.prosocial.data import Encoded
from ttsa_guard.steerers.prosocial.training import OnStep, Plan, drawn, optimise

SHAPE = AdapterShape(
    rank=8,
    objectives=0,
    targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
)
MARGIN, HINGE = 0.1, 1.0
"""gamma and lambda of the paper, whose values are not known to us."""


@dataclass(frozen=True)
class Lesson:
    """Hold a pair and what is known of its tokens.

    Args:
        pair: the better and the worse answer.
        reference: the log-probabilities of their tokens under the patient.
        rewards: the rewards of their tokens.
    """

    pair: tuple[Encoded, Encoded]
    reference: tuple[torch.Tensor, torch.Tensor]
    rewards: tuple[torch.Tensor, torch.Tensor]


def by_faces(log_ratios: Pairs, theta: float) -> Pairs:
    """Return the rewards of all tokens of all pairs; see `rewards`."""
    return [
        (rewards(a, better=True, theta=theta), rewards(b, better=False, theta=theta))
        for a, b in log_ratios
    ]


def by_label(log_ratios: Pairs) -> Pairs:
    """Return 1 for every token of a better answer and -1 for every one of a worse; no face."""
    return [(torch.ones_like(a), -torch.ones_like(b)) for a, b in log_ratios]


def lessons(
    pairs: Sequence[tuple[Encoded, Encoded]], reference: Pairs, given: Pairs
) -> list[Lesson]:
    """Return the lessons of all pairs.

    The rewards are scaled so that those of an answer sum to 1 or -1 in the mean. So kappa, in nats,
    means the same for all kinds of rewards.
    """
    scale = torch.stack([r.sum().abs() for pair in given for r in pair]).mean()
    return [
        Lesson(pair, said, (a / scale, b / scale))
        for pair, said, (a, b) in zip(pairs, reference, given, strict=True)
    ]


def by_flow(
    model: Any, given: Sequence[Lesson], plan: Plan, kappa: float, on_step: OnStep
) -> Stored:
    """Train a doctor by flow.

    Args:
        kappa: the nats by which the answers of a pair are moved, each, in the mean.
    """
    head = nn.Linear(model.config.hidden_size, 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)

    def loss(batch: Sequence[Lesson]) -> torch.Tensor:
        states = _states(model, head, batch)
        total = states[0][0].new_zeros(())
        for i, lesson in enumerate(batch):
            values = []
            for side in (0, 1):
                log_probs, log_v = states[2 * i + side]
                g = flow.potentials(
                    flow.log_scores(lesson.rewards[side], kappa),
                    log_v,
                    log_probs - lesson.reference[side],
                )
                total = total + g.var(correction=0)
                values.append(log_v[_split(lesson) + 1])
            total = total + HINGE * flow.hinge(values[0], values[1], MARGIN)
        return total / len(batch)

    about = {"objective": "flow", "kappa": kappa}
    return _trained(model, given, plan, loss, [*head.parameters()], about, on_step)


def by_preference(
    model: Any, given: Sequence[Lesson], plan: Plan, beta: float, on_step: OnStep
) -> Stored:
    """Train a doctor by direct preference, which is a control: neither faces nor flow."""

    def loss(batch: Sequence[Lesson]) -> torch.Tensor:
        states = _states(model, None, batch)
        sums = [
            (states[2 * i + side][0] - lesson.reference[side]).sum()
            for i, lesson in enumerate(batch)
            for side in (0, 1)
        ]
        better, worse = torch.stack(sums).view(-1, 2).unbind(1)
        return -logsigmoid(beta * (better - worse)).mean()

    return _trained(model, given, plan, loss, [], {"objective": "dpo", "beta": beta}, on_step)


def _trained(
    model: Any,
    given: Sequence[Lesson],
    plan: Plan,
    loss: Callable[[Sequence[Lesson]], torch.Tensor],
    besides: Sequence[nn.Parameter],
    about: dict[str, Any],
    on_step: OnStep,
) -> Stored:
    torch.manual_seed(plan.seed)
    adapter = Adapter(model, SHAPE, base=fingerprint(model), made=str(about))
    model.requires_grad_(False)

    def step(number: int) -> float:
        value = loss(drawn(plan, number).sample(given, min(plan.batch, len(given))))
        value.backward()  # type: ignore[no-untyped-call]
        return value.item()

    with adapter.attached(model):
        optimise(
            [*adapter.parameters(), *besides],
            step,
            plan,
            {"of": adapter.base, **about, **asdict(SHAPE)},
            on_step,
        )
    tensors = {name: tensor.detach() for name, tensor in adapter.state_dict().items()}
    return Stored(tensors, SHAPE, adapter.base, adapter.made, adapter.alpha)


def _states(
    model: Any, head: nn.Module | None, batch: Sequence[Lesson]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return log pi of the tokens [L] and log V of the states [L + 1] of each answer."""
    examples = [e for lesson in batch for e in lesson.pair]
    texts = [[*e.prompt, *e.answer] for e in examples]
    ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = torch.tensor(text)
    found = model(input_ids=ids, use_cache=False, output_hidden_states=head is not None)
    chosen = found.logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    states = []
    for i, e in enumerate(examples):
        first = len(e.prompt) - 1
        last = first + len(e.answer)
        log_v = chosen.new_zeros(len(e.answer) + 1)
        if head is not None:
            # The last state has V = 1, which is what makes the flow known.
            log_v = torch.cat(
                [head(found.hidden_states[-1][i, first:last])[:, 0].float(), log_v[:1]]
            )
        states.append((chosen[i, first:last], log_v))
    return states


def _split(lesson: Lesson) -> int:
    """Return the number of tokens that the two answers of a pair begin with, both."""
    a, b = (e.answer for e in lesson.pair)
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), 0)
