"""Put a safety prefix before the question, and make the question attend to it more.

This is the calibration half of *GuardAlign* (Zhu et al., arXiv 2602.24027, equations 12 to 14),
carried over from images and text to text alone. The equation is the paper's; the prefix, its place,
gamma and the layers are our reconstruction.
"""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any, Literal, cast

from pydantic import Field, model_validator

from ttsa_guard.backends.base import CalibratesAttention
from ttsa_guard.errors import ConfigError, PromptError
from ttsa_guard.messages import Calibration, Message, Prompt
from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.settings import Settings
from ttsa_guard.steerers.base import Candidate, Task

PREFIX = (
    "As an AI assistant, you are safe, honest and respectful. You decline what would help with"
    " harm, and you answer everything else as well as you can."
)
"""The paper's prefix begins with the same four words; the rest of it is not known."""


class AnchorOptions(Settings):
    """Configure the steerer `anchor`."""

    prefix: str = Field(PREFIX, min_length=1, description="text that stands before the question")
    place: Literal["user", "system"] = Field(
        "user",
        description="where: at the beginning of the last user message, or of the system message",
    )
    gamma: float = Field(
        0.01,
        ge=0,
        allow_inf_nan=False,
        description="how much attention to the prefix is raised; 0: the prefix alone",
    )
    layers: tuple[int, int] | None = Field(
        None,
        description="first layer whose attention is raised, and the one after the last, counted"
        " from 0; default: the middle third",
    )
    generated: bool = Field(False, description="raise the attention of the answer's tokens, too")
    control: Literal["none", "random", "constant"] = Field(
        "none",
        description=(
            "for comparison. random: attention is raised to as many tokens of the prompt that are"
            " not the prefix; constant: the prefix gets the same share of attention through one"
            " constant for all of its tokens"
        ),
    )
    n: int = Field(4, ge=1, description="answers drawn, in one batch")
    temperature: float = Field(0.7, ge=0, le=2, description="temperature of the answers")

    @model_validator(mode="after")
    def _ordered(self) -> AnchorOptions:
        if self.layers and not 0 <= self.layers[0] < self.layers[1]:
            raise ValueError("layers are two numbers, and the second is the larger one")
        return self


class Anchor:
    """Draw up to `n` answers to the conversation with the prefix, to which attention is raised.

    Nothing but these answers is computed with raised attention: neither likelihoods nor what a
    moderator asks the same model.
    """

    name = "anchor"

    def __init__(self, options: AnchorOptions) -> None:
        self.options = options
        self.needs: tuple[type, ...] = (CalibratesAttention,) if options.gamma else ()

    def fit(self, backend: Any) -> None:
        """Check that the model's attention can be calibrated in the layers; see `Fits`.

        Raises:
            ConfigError: it cannot.
        """
        if not self.options.gamma:
            return
        count = cast(CalibratesAttention, backend).attention_layers
        if not count:
            raise ConfigError(
                f"the attention of {backend.name!r} cannot be calibrated",
                hint="ttsa-guard doctor says why; with gamma: 0 the steerer uses the prefix alone",
            )
        if self.options.layers and self.options.layers[1] > count:
            raise ConfigError(
                f"anchor calibrates layers up to {self.options.layers[1]}, and {backend.name!r} has"
                f" {count}",
                hint="leave `layers` out for the middle third",
            )

    async def steer(self, task: Task) -> AsyncGenerator[list[Candidate], None]:
        """Yield one batch of answers.

        Raises:
            PromptError: the model's chat template leaves the prefix out.
        """
        options = self.options
        numbers = range(min(options.n, task.usage.generations_left))
        if not numbers:
            return
        prompt = await task.backend.render(self._anchored(task))
        base = task.base.with_(
            prompt=prompt,
            temperature=options.temperature,
            calibration=await self._calibration(task, prompt) if options.gamma else None,
        )
        yield await task.propose(
            [base.with_(seed=task.seed + i) for i in numbers], [f"anchored {i}" for i in numbers]
        )

    def _anchored(self, task: Task) -> tuple[Message, ...]:
        """Return the conversation with the prefix."""

        def after(text: str) -> str:
            return f"{self.options.prefix}\n\n{text}"

        if self.options.place == "user":
            return task.reworded(after)
        first, *rest = task.messages
        if first.role == "system":
            return (replace(first, content=after(first.content)), *rest)
        return (Message("system", self.options.prefix), *task.messages)

    async def _calibration(self, task: Task, prompt: Prompt) -> Calibration:
        options = self.options
        keys, queries = spans(await task.backend.render(task.messages), prompt)
        if options.control == "random":
            others = sorted(set(range(queries[-1])) - set(keys))
            keys = tuple(random.Random(task.seed).sample(others, min(len(keys), len(others))))
        return Calibration(
            keys,
            queries,
            tuple(range(*(options.layers or middle(_layers(task.backend))))),
            options.gamma,
            constant=options.control == "constant",
            generated=options.generated,
        )


def spans(plain: Prompt, prefixed: Prompt) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Find the tokens of the prefix, and those of the question after it.

    Args:
        plain: the conversation without the prefix.
        prefixed: the same with it.

    Returns:
        Positions in `prefixed`: those of the tokens that `plain` does not have, and those of the
        last user message that come after them.

    Raises:
        PromptError: the prefix is not there, or no question comes after it.
    """
    asked, more = prefixed.soft_positions, len(prefixed.soft_ids) - len(plain.soft_ids)
    if more > 0:  # the prefix is in the user message itself
        keys, queries = asked[:more], asked[more:]
    else:
        old, new = plain.ids, prefixed.ids
        first = _alike(old, new)
        last = len(new) - _alike(old[first:][::-1], new[first:][::-1])
        keys, queries = tuple(range(first, last)), tuple(at for at in asked if at >= last)
    if not keys or not queries:
        raise PromptError(
            "the safety prefix does not stand before the question in the model's chat template",
            hint="choose the other `place`",
        )
    return keys, queries


def _alike(old: Sequence[int], new: Sequence[int]) -> int:
    """Return with how many equal elements the two begin."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(old, new, strict=False)))


def middle(layers: int) -> tuple[int, int]:
    """Return the middle third of so many layers, as the first one and the one after the last."""
    return layers // 3, layers - layers // 3


def _layers(backend: Any) -> int:
    return cast(CalibratesAttention, backend).attention_layers


@hookimpl
def ttsa_register_steerers(register: Register) -> None:
    """Register the steerer."""
    register("anchor", Anchor, options=AnchorOptions)
