"""The files of a benchmark's folder, and what a line of them holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ttsa_guard.budget import Budget
from ttsa_guard.errors import ConfigError
from ttsa_guard.files import replacing

META, CASES, ROWS, TEXTS = "meta.json", "cases.jsonl", "rows.jsonl", "texts.jsonl"
SCHEMA = 1
_FREE = ("command", "config")
"""What a run that goes on may have different from the one that began; of the settings, each is
compared by itself."""


@dataclass(frozen=True)
class RunMeta:
    """What a benchmark was run with: its `meta.json`.

    Args:
        command: how it was started, for readers of the results.
        config: the settings of a `BenchConfig` as plain data. Older versions may have written
            others, so the properties below are the way to read them.
        versions: of Python and of packages; None for one that is not installed.
    """

    schema: int
    command: str
    config: dict[str, Any]
    versions: dict[str, str | None]
    device: str
    seed: int

    @property
    def reference(self) -> str:
        """The arm that the others are compared with."""
        return str(self.config["reference"])

    @property
    def arms(self) -> dict[str, dict[str, Any] | None]:
        """What each arm sets, by name; None is no guard at all."""
        return dict(self.config["arms"])

    @property
    def model(self) -> str | None:
        """The model that the settings name; None for the backend's default."""
        name = self.config["backend"]["options"].get("model")
        return None if name is None else str(name)

    @property
    def budget(self) -> Budget:
        """The budget of a search."""
        own = self.config["budget"]
        return Budget(**{name: own[name] for name in Budget.model_fields if name in own})

    @property
    def judge(self) -> str | None:
        """The plugin that judges; None where every answer is judged exactly."""
        judge = self.config["judge"]
        return None if judge is None else str(judge["use"])

    @property
    def exact(self) -> list[bool]:
        """Whether answers to the prompts of each source are judged exactly, see
        `PromptSource.exact`.
        """
        return [(source["name"] or "").startswith("embedded") for source in self.config["data"]]

    def differing(self, other: RunMeta) -> list[str]:
        """Return the settings and circumstances in which another run differs from this one."""
        circumstances = [
            f.name
            for f in fields(self)
            if f.name not in _FREE and getattr(self, f.name) != getattr(other, f.name)
        ]
        settings = [key for key, value in other.config.items() if self.config.get(key) != value]
        return list(dict.fromkeys([*circumstances, *settings]))

    def save(self, folder: Path) -> None:
        """Write it into the folder of a new benchmark, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / META) as file:
            file.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> RunMeta:
        """Read that of a folder.

        Raises:
            ConfigError: the folder has none, or one of a newer version.
        """
        try:
            data = json.loads((folder / META).read_text(encoding="utf-8"))
            if data["schema"] > SCHEMA:
                hint = "update ttsa-guard: pip install -U ttsa-guard"
                raise ConfigError(f"{folder} was written by a newer version", hint=hint)
            return cls(**{f.name: data[f.name] for f in fields(cls)})
        except (OSError, ValueError, TypeError, KeyError):
            raise ConfigError(
                f"{folder} has no benchmark",
                hint="make one with: ttsa-guard bench run quick --out DIR",
            ) from None


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """What happened to one case in one arm, in numbers: a line of `rows.jsonl`.

    Args:
        arm, case: their names; together they are the line's key.
        action: of the guard: "pass", "swap" or "fallback"; "none" in an arm without a guard.
        gate_before, gate_after: whether the gate flags the plain answer, and the text that left;
            guide and judge likewise. The judge's are None where no moderator judges.
        unchanged: the plain answer left as it was.
        refusal, on_topic: None where the judge cannot tell.
        question_similarity: lexical, of the text that left and the question, 0 to 1;
            `plain_similarity` with the model's answer to the question alone, None where that is not
            known.
        decode_steps: new tokens of the longest generation of each pass, together.
        seconds: of the review, of its decode passes, and of its likelihoods and gradients by
            themselves.

    Older versions have not written what is None here by default.
    """

    arm: str
    case: str
    action: str
    gate_before: bool
    gate_after: bool
    guide_before: bool
    guide_after: bool
    judge_before: bool | None
    judge_after: bool | None
    unchanged: bool
    unsafe: bool
    fluent: bool
    on_topic: bool | None
    refusal: bool | None
    good: bool
    helpful: bool
    question_similarity: float
    plain_similarity: float | None
    generations: int
    decode_passes: int
    decode_steps: int | None = None
    moderation_calls: int
    tokens: int
    seconds: float
    seconds_decoding: float | None = None
    seconds_scoring: float | None = None

    @property
    def key(self) -> tuple[str, str]:
        """Arm and case."""
        return self.arm, self.case

    @property
    def swapped(self) -> bool:
        """Whether another answer left."""
        return self.action == "swap"

    def as_line(self) -> str:
        """Return the line without its end."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, line: str | bytes) -> CaseResult:
        """Read a line."""
        data: Mapping[str, Any] = json.loads(line)
        return cls(**{name: data[name] for name in _FIELDS if name in data})


_FIELDS = tuple(f.name for f in fields(CaseResult))
