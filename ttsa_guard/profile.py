"""What is known about one model: how its safe answers begin, and how likely its own answers are.

``ttsa-guard profile MODEL`` collects it once for a model. The profile of the embedded model ships
with it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, field_validator

from ttsa_guard.config import GuardConfig, Use
from ttsa_guard.errors import ModelError
from ttsa_guard.files import replacing

OpeningKind = Literal["answer", "redirect", "refusal"]
FILE = "ttsa_profile.json"
_FEWEST_WORDS = 3


class Opening(BaseModel):
    """The first words of a safe answer."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    text: str
    """The words."""
    kind: OpeningKind
    """What begins like this. `answer`: one to a harmless request. `redirect`: an alternative to an
    unsafe request. `refusal`: a refusal."""
    count: int = 1
    """How many of the sampled answers began like this."""


class ModelProfile(BaseModel):
    """What is known about one model.

    Its openings are in the order of likelihood within a kind.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    model: str = ""
    """The model that was measured."""
    openings: tuple[Opening, ...] = ()
    """How its safe answers begin, the likeliest first within a kind."""
    steerers: tuple[Use, ...] = ()
    """The cascade that was best for this model. An empty one was not measured."""
    steerers_for_harm: tuple[Use, ...] = ()
    """The cascade for answers that were flagged for what they help with. If it is empty, it is the
    same."""
    floor: float | None = None
    """1st percentile of the mean token log-likelihood of the model's own safe answers, in nats.
    `null` was not measured."""

    @property
    def redirects(self) -> bool:
        """Whether it has redirecting openings that the model itself was seen to use."""
        return any(o.kind == "redirect" and o not in GENERIC.openings for o in self.openings)

    @field_validator("steerers", "steerers_for_harm", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return (
            [{"use": item} if isinstance(item, str) else item for item in value]
            if isinstance(value, list | tuple)
            else value
        )

    def applied(self, config: GuardConfig) -> GuardConfig:
        """Return the settings with this profile's cascades where the settings name none."""
        found: dict[str, Any] = {}
        if "steerers" not in config.model_fields_set and self.steerers:
            found["steerers"] = self.steerers
        own = config.model_fields_set & {"steerers", "steerers_for_harm"}
        if not own and self.steerers_for_harm:
            found["steerers_for_harm"] = self.steerers_for_harm
        return config.model_copy(update=found)

    @classmethod
    def load(cls, path: Path) -> ModelProfile:
        """Read a profile.

        Raises:
            ModelError: the file is missing, or it is not a profile.
        """
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(
                f"{path} is not a model profile",
                hint="make one with: ttsa-guard profile MODEL --out FILE",
            ) from error

    def save(self, path: Path) -> None:
        """Write the profile as JSON, all of it or nothing. Missing folders are made."""
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"
        with replacing(path) as file:
            file.write_text(text, encoding="utf-8")


HARMS = "it could harm people"


def declining(because: str = HARMS) -> str:
    """Return a sentence that declines what was asked for, because of what the clause says."""
    return f"I can't help with that, because {because}."


DECLINING = declining()
GENERIC = ModelProfile(
    model="any",
    openings=(
        Opening(text="I'd be happy to help. Here is", kind="answer"),
        Opening(text="Here are a few ideas that may help:", kind="answer"),
        Opening(text="To begin with,", kind="answer"),
        Opening(
            text=(
                f"{DECLINING} What I can do is explain how to protect yourself and others"
                " against it:"
            ),
            kind="redirect",
        ),
        Opening(
            text=f"{DECLINING} If someone does this to you, here is what you can do:",
            kind="redirect",
        ),
        Opening(
            text=f"{DECLINING} Instead, here are some safe and legal things that you can do:",
            kind="redirect",
        ),
        Opening(
            text="I'm sorry, but I can't help with that, because it could harm you or others.",
            kind="refusal",
        ),
    ),
)
"""The profile of a model that was never profiled.

It has whole safe beginnings (plain answers; decline and offer; decline) and no floor.
"""


def with_whole_beginnings(profile: ModelProfile) -> ModelProfile:
    """Return the profile with openings that are long enough to make an answer safe.

    Openings of one or two words are left out, because any answer may begin with them. Openings that
    decline and offer something else are those of `GENERIC`. The sampled ones begin answers to
    unsafe questions that a moderator passed, and such an answer may well go on to comply. The
    model's own refusals come last.
    """
    whole = [o for o in profile.openings if len(o.text.split()) >= _FEWEST_WORDS]
    answers = [o for o in whole if o.kind == "answer"]
    generic = [o for o in GENERIC.openings if o.kind != "answer" or not answers]
    refusals = [o for o in whole if o.kind == "refusal"]
    return profile.model_copy(update={"openings": (*answers, *generic, *refusals)})
