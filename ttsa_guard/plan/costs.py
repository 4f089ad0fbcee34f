"""What the work of a replica takes: measured, or worked out from the shape of the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, field_validator, model_validator

from ttsa_guard.settings import Settings, read_yaml, validated


class Moderation(Settings):
    """A moderator, local or a service. What a call takes is log-normal."""

    p50: float = Field(
        0.001, ge=0, description="median seconds of a call, waiting for the limit aside"
    )
    p95: float | None = Field(
        None, ge=0, description="its 95th percentile; default: the median, so that it never varies"
    )
    per_second: float | None = Field(
        None, gt=0, description="calls a second that the whole deployment may make"
    )
    price: float = Field(0.0, ge=0, description="of a thousand calls")

    @model_validator(mode="after")
    def _in_order(self) -> Moderation:
        if self.p95 is not None and self.p95 < self.p50:
            raise ValueError("the 95th percentile is at least the median")
        return self

    @property
    def sigma(self) -> float:
        """Return the standard deviation of the logarithm of a call's seconds."""
        return math.log(self.p95 / self.p50) / 1.6449 if self.p95 and self.p50 else 0.0


class Costs(Settings):
    """Seconds that a replica's work takes.

    A step decodes one token of every row. Its time is linear between the measured points, which may
    bend wherever the hardware does, and beyond the last one goes on as between the last two.
    """

    step: tuple[tuple[int, float], ...] = Field(
        min_length=1, description="[rows, seconds of a decode step], rows rising"
    )
    prefill: float = Field(0.0, ge=0, description="a prompt token")
    call: float = Field(
        0.0, ge=0, description="a decode call, besides its steps and prompts; with batching: calls"
    )
    rows: int = Field(32, ge=1, description="most rows decoded together")
    gate: Moderation | None = Field(None, description="a local gate, as measured")
    about: dict[str, str] = Field(
        default_factory=dict, description="what was measured: model, device, versions"
    )

    @field_validator("step")
    @classmethod
    def _rising(cls, value: tuple[tuple[int, float], ...]) -> tuple[tuple[int, float], ...]:
        rows = [n for n, _ in value]
        if rows != sorted(set(rows)) or rows[0] < 1 or any(seconds <= 0 for _, seconds in value):
            raise ValueError("rows rise from at least 1, and seconds are positive")
        return value

    @cached_property
    def steps(self) -> list[float]:
        """Seconds of a step with 0, 1, ... `rows` rows."""
        known, seconds = (np.array(column, dtype=float) for column in zip(*self.step, strict=True))
        slope = (seconds[-1] - seconds[-2]) / (known[-1] - known[-2]) if len(known) > 1 else 0.0
        n = np.arange(self.rows + 1)
        interpolated = np.interp(n, known, seconds) + np.maximum(0, n - known[-1]) * max(0.0, slope)
        return [float(x) for x in interpolated]

    def decoding(self, lengths: Sequence[int]) -> float:
        """Return the seconds that one batch of rows takes; a row leaves the batch when it ends."""
        total, done = 0.0, 0
        for i, length in enumerate(sorted(lengths)):
            total += (length - done) * self.steps[len(lengths) - i]
            done = length
        return total

    def calling(self, lengths: Sequence[int], prompt: int) -> float:
        """Return the seconds of all decode calls that these rows take.

        Args:
            lengths: tokens of each row.
            prompt: prompt tokens of all rows together.
        """
        chunks = [lengths[i : i + self.rows] for i in range(0, len(lengths), self.rows)]
        return self.prefill * prompt + sum(self.call + self.decoding(chunk) for chunk in chunks)

    @classmethod
    def load(cls, path: Path) -> Costs:
        """Read costs from a file of ``ttsa-guard plan measure``.

        Raises:
            ConfigError: it cannot be read, or is something else.
        """
        data = read_yaml(path, hint="make one with: ttsa-guard plan measure --out FILE")
        return validated(cls, data, where="costs")


class ReplicaShape(Settings):
    """A model and an accelerator, from which costs are worked out.

    A step reads the weights and the keys of all rows, or it is arithmetic, whichever takes longer.
    The defaults are a model of 8 billion parameters on a card of 80 GB.

    This is an estimate for what has not been measured yet; `efficiency` is what usually becomes of
    the numbers in data sheets.
    """

    parameters: float = Field(8e9, gt=0, description="of the model")
    layers: int = Field(32, ge=1, description="of the model")
    kv_heads: int = Field(8, ge=1, description="heads of keys and values in a layer")
    head_size: int = Field(128, ge=1, description="numbers in a key or value of one head")
    bytes: float = Field(2, gt=0, description="of a parameter and of a cached number")
    context: int = Field(1024, ge=1, description="tokens of a row, prompt and answer")
    flops: float = Field(9.9e14, gt=0, description="operations a second")
    bandwidth: float = Field(3.35e12, gt=0, description="bytes a second")
    memory: float = Field(8e10, gt=0, description="bytes")
    efficiency: float = Field(0.5, gt=0, le=1, description="share of these numbers that is reached")
    most_rows: int = Field(
        256, ge=1, description="most rows decoded together, if the memory holds their keys"
    )

    def costs(self) -> Costs:
        """Work out the roofline of this model.

        Raises:
            ValueError: the weights and the keys of one row do not fit into 90 % of the memory.
        """
        weights = self.parameters * self.bytes
        numbers = 2 * self.layers * self.kv_heads * self.head_size  # of a token's keys and values
        keys = numbers * self.bytes * self.context
        rows = min(self.most_rows, int((0.9 * self.memory - weights) / keys))
        if rows < 1:
            raise ValueError("the model does not fit into the memory")
        token = 2 * self.parameters / (self.flops * self.efficiency)
        read, key = (size / (self.bandwidth * self.efficiency) for size in (weights, keys))
        ridge = math.ceil(read / (token - key)) if token > key else rows
        points = sorted({1, min(max(1, ridge), rows), rows})
        return Costs(
            step=tuple((n, max(read + n * key, n * token)) for n in points),
            prefill=token,
            rows=rows,
            about=self._about,
        )

    @property
    def _about(self) -> dict[str, Any]:
        return {
            "model": f"{self.parameters / 1e9:g} billion parameters",
            "device": "from data sheets",
        }
