"""Make a model surer of the examples in its prompt.

This is Self-Improving In-Context Learning (arXiv 2605.23180), for few-shot prompts. The input
embeddings climb a proxy of how well the model predicts the labels of the demonstrations; the answer
to the query is then generated from the point where the proxy is highest. The search takes forward
passes over the prompt only: it generates no token and asks no moderator. It is not a safety method
by itself, so its answers are verified like any other candidate.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import ClassVar, Literal, cast

import torch
from pydantic import Field

from ttsa_guard.backends.base import ExposesLogProbs, TakesEmbeddings
from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.settings import Settings
from ttsa_guard.steerers.base import Candidate, Task
from ttsa_guard.steerers.estimators import Antithetic, Climb, Forward

CONFIDENCE, ROBUSTNESS, GAIN = 0.6, 0.3, 0.1
"""These are the weights of the parts of the `proxy`."""


class IclConfidenceOptions(Settings):
    """Configure the steerer `icl_confidence`; the defaults are the published settings.

    Lengths are in units of the embeddings, as published for Llama-3.1-8B. A label stands between
    `label` and the next `end`; if no `end` follows, it is the label of the query and is left out.
    The defaults read ``Input: ...\\nLabel: ...\\n``, line by line.
    """

    label: str = Field("Label:", min_length=1, description="what stands before a label")
    end: str = Field("\n", min_length=1, description="what stands after it")
    estimator: Literal["one_sided", "symmetric"] = Field(
        "one_sided", description="differences that estimate the gradient"
    )
    probes: int = Field(
        16, ge=2, description="N, probes an iteration; symmetric: half as many pairs"
    )
    probe: float = Field(0.001, gt=0, description="mu, factor on the standard-normal probes")
    step: float = Field(0.03, ge=0, description="factor on the direction")
    clip: float | None = Field(
        1.0, gt=0, description="longest step of a token; null: every token's direction has norm 1"
    )
    cosine: float = Field(
        0.2, gt=0, lt=1, description="lowest cosine of the moved tokens to the original ones"
    )
    gate: float = Field(
        0.1,
        ge=0,
        le=1,
        description="lowest proxy of the original prompt; below it nothing is tried",
    )
    signal: float = Field(
        0.0, ge=0, description="signal-to-noise ratio below which a step is skipped; 0: none is"
    )
    patience: int = Field(
        15, ge=0, description="iterations without a better proxy before the end; 0: no such end"
    )
    iterations: int = Field(250, ge=1, description="most iterations")
    every: int = Field(25, ge=1, description="iterations between two candidates of the path")


class IclConfidence:
    """Propose the answer at the best point so far, now and then and at the end.

    There is one answer every `every` iterations, unless that point has not moved meanwhile. If the
    last user message holds no demonstrations, it proposes nothing.
    """

    name = "icl_confidence"
    needs: ClassVar[tuple[type, ...]] = (TakesEmbeddings, ExposesLogProbs)

    def __init__(self, options: IclConfidenceOptions) -> None:
        self.options = options

    async def steer(self, task: Task) -> AsyncGenerator[list[Candidate], None]:
        """Yield one candidate a round."""
        options = self.options
        # The guard has checked that the backend has what this steerer `needs`.
        embeds, scores = cast(TakesEmbeddings, task.backend), cast(ExposesLogProbs, task.backend)
        text, spans = await scores.locate(task.messages)
        labels = label_tokens(find_labels(text, options.label, options.end), spans)
        if not labels:
            return
        prompt = await task.backend.render(task.messages)
        free = torch.tensor([position <= labels[-1][-1] for position in prompt.soft_positions])
        climb = self._climb(await embeds.embed(prompt.soft_ids), free, task.seed)
        positions = [position for label in labels for position in label]
        lengths = [len(label) for label in labels]
        proposed: torch.Tensor | None = None
        for k in range(1, options.iterations + 1):
            with task.usage.timed("scoring"):
                log_probs = await scores.token_log_probs(prompt, list(climb.ask()), positions)
            climb.tell(proxy(log_probs, lengths))
            if climb.ended == "gate":
                return
            last = climb.ended is not None or k == options.iterations
            if climb.best is not proposed and (last or k % options.every == 0):
                proposed = climb.best
                yield await task.propose(
                    [task.base.with_(prompt=prompt, soft_embeds=proposed)],
                    [f"proxy {climb.value:.3f}"],
                )
            if last:
                return

    def _climb(self, origin: torch.Tensor, free: torch.Tensor, seed: int) -> Climb:
        """Return the search that starts at `origin`, [T, d], and moves the `free` tokens, [T]."""
        options = self.options
        generator = torch.Generator().manual_seed(seed)
        estimator = (
            Forward(options.probes, options.probe, generator, free)
            if options.estimator == "one_sided"
            else Antithetic(options.probes // 2, options.probe, generator, free)
        )
        return Climb(
            origin,
            estimator,
            step=options.step,
            clip=options.clip,
            cosine=options.cosine,
            gate=options.gate,
            signal=options.signal,
            patience=options.patience,
        )


def find_labels(text: str, label: str, end: str) -> list[tuple[int, int]]:
    """Return where the demonstrations' labels stand in `text`, [start, end)."""
    labels: list[tuple[int, int]] = []
    at = text.find(label)
    while at >= 0 and (stop := text.find(end, at + len(label))) >= 0:
        content = text[at + len(label) : stop]
        if content.strip():
            start = stop - len(content.lstrip())
            labels.append((start, start + len(content.strip())))
        at = text.find(label, stop)
    return labels


def label_tokens(
    labels: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]
) -> list[list[int]]:
    """Return the positions of the tokens of each label.

    The token at position 0 has nothing before it that could predict it. So it counts for no label,
    and a label that has no other token is left out.

    Args:
        labels: the characters [start, end) of each label.
        spans: the characters [start, end) that each token of the prompt covers.
    """
    positions = (
        [i for i, (a, b) in enumerate(spans) if i and a < end and b > start]
        for start, end in labels
    )
    return [of_label for of_label in positions if of_label]


def proxy(log_probs: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """Return how well the labels are predicted at each of n points, [n], in [0, 1].

    It is 0.6 C + 0.3 R + 0.1 G. C is the mean confidence of the labels; the confidence of a label
    is the geometric mean of its token probabilities. R is the 10 % quantile of all token
    probabilities. G is the mean rise of the confidence from one label to the next, where a fall
    counts as 0.

    Args:
        log_probs: log-probabilities of the tokens of all labels, in order, [n, sum of lengths].
        lengths: the number of tokens of each label.
    """
    labels = torch.stack(
        [part.mean(-1).exp() for part in torch.split(log_probs, list(lengths), dim=-1)], dim=-1
    )
    robustness = log_probs.exp().quantile(0.1, dim=-1)
    gain = labels.diff(dim=-1).clamp(min=0).sum(-1) / max(1, len(lengths) - 1)
    return CONFIDENCE * labels.mean(-1) + ROBUSTNESS * robustness + GAIN * gain


@hookimpl
def ttsa_register_steerers(register: Register) -> None:
    """Register the steerer."""
    register("icl_confidence", IclConfidence, options=IclConfidenceOptions)
