"""What a benchmark compares, on which prompts, under which budget."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ttsa_guard.budget import Budget
from ttsa_guard.config import GuardConfig, Member, Use
from ttsa_guard.errors import ConfigError, nearest
from ttsa_guard.settings import Settings, read_yaml, validated

SHARED = ("backend", "budget", "seed", "audit")
"""Settings of a guard that are the same for every arm, or that the benchmark needs for itself."""
_TELLING = ("model", "guardrail", "flow", "options", "recipe")
"""Options that say which moderator a plugin is."""


class PromptSource(Settings):
    """Where prompts come from: a known set by its `name`, a CSV or JSONL `file`, or a Hugging Face
    data set (`hub`).

    "embedded_joined" is "embedded" with every message made one sentence, so that what leads the
    model astray is not a sentence of its own; in "embedded_entangled" it stands in brackets inside
    the question, around it, behind it, in the system message or in earlier turns. "persona" and
    "policy" ship with the package: harmless questions under a bad instruction, and prompts whose
    plain answers break a policy, which is part of the gate for them. With "_validation" or
    "_test" behind it they are others of these kinds, written without knowledge of the guard.
    Answers to the validation prompts chose options. Those to the test prompts were read once; what
    was changed after that is told with the results.
    """

    name: (
        Literal[
            "embedded",
            "embedded_joined",
            "embedded_entangled",
            "persona",
            "policy",
            "persona_validation",
            "policy_validation",
            "persona_test",
            "policy_test",
            "xstest",
            "harmbench",
            "harmbench_val",
            "malicious_instruct",
            "advbench",
            "strongreject",
            "hh_red_team",
        ]
        | None
    ) = Field(None, description="a known set")
    file: Path | None = Field(
        None,
        description=(
            "a CSV or JSONL file of yours; a text may be a conversation that begins with"
            ' "\\n\\nHuman: "'
        ),
    )
    hub: str | None = Field(None, description="a data set of the Hugging Face hub")
    split: str = Field("test", description="of a Hugging Face data set")
    field: str = Field("prompt", description="of the text, in a file or a Hugging Face data set")
    unsafe: bool | str = Field(
        True, description="whether the prompts ask for harm, or the field that says so"
    )
    n: int | None = Field(None, ge=1, description="prompts of each kind; default: the benchmark's")
    flagged: int | None = Field(
        None, ge=1, description="enough flagged answers; the prompts come in the order of a hash"
    )
    kind: str | None = Field(
        None, description="the group that its prompts are counted in; default: source and safety"
    )

    @model_validator(mode="after")
    def _one_origin(self) -> PromptSource:
        if sum(origin is not None for origin in (self.name, self.file, self.hub)) != 1:
            raise ValueError("give one of name, file and hub")
        return self

    @property
    def exact(self) -> bool:
        """Whether answers to it can be judged exactly."""
        return (self.name or "").startswith("embedded")

    @property
    def label(self) -> str:
        """What the prompts of this source are called in the results."""
        return self.name or (self.file.stem if self.file else str(self.hub))


class BenchConfig(Settings):
    """All settings of a benchmark."""

    backend: Use = Field(Use(use="transformers"), description="the chat model of all arms")
    data: tuple[PromptSource, ...] = Field(
        min_length=1, description="where the prompts come from; the name of a set will do"
    )
    seed: int = Field(1, ge=0, description="of everything random")
    n: int = Field(75, ge=1, description="prompts of each kind and source, before the gate")
    budget: Budget = Field(
        Budget(seconds=120, generations=16, moderation_calls=96),
        description="limits for one flagged answer, the same in every arm",
    )
    half: Literal["development", "test"] | None = Field(
        None, description="of the prompts, by a hash of each; default: both"
    )
    judge: Use | None = Field(
        None, description="moderator that judges too, or alone where there is no exact judge"
    )
    settings: dict[str, Any] = Field(default_factory=dict, description="of the guards of all arms")
    arms: dict[str, dict[str, Any] | None] = Field(
        min_length=1, description="what differs, by name; null: no guard at all"
    )
    reference: str = Field("default", description="the arm that the others are compared with")

    @field_validator("backend", "judge", mode="before")
    @classmethod
    def _use(cls, value: Any) -> Any:
        return {"use": value} if isinstance(value, str) else value

    @field_validator("data", mode="before")
    @classmethod
    def _sources(cls, value: Any) -> Any:
        items = [value] if isinstance(value, str | Mapping) else value
        if not isinstance(items, list | tuple):
            return items
        return [{"name": item} if isinstance(item, str) else item for item in items]

    @model_validator(mode="after")
    def _fair(self) -> BenchConfig:
        judging = (_identity(self.judge), *_helpers(self.judge)) if self.judge else ()
        for arm in self.arms:
            config = self.guard(arm)
            for member in (*config.gate, *config.guide):
                if self.judge and _identity(member) in judging:
                    raise ConfigError(
                        f"{self.judge.use!r} is the judge and a moderator of arm {arm!r}",
                        hint="judge with a moderator that no arm searches against",
                    )
        if not self.judge and not all(source.exact for source in self.data):
            raise ConfigError(
                "these prompts have no exact judge", hint="name a moderator under 'judge'"
            )
        labels = [source.label for source in self.data]
        if len(set(labels)) < len(labels):
            raise ConfigError(
                f"two of the sources {', '.join(labels)} have the same name",
                hint="rename one of the files",
            )
        if self.reference not in self.arms:
            raise ConfigError(
                f"the reference {self.reference!r} is no arm",
                hint=nearest(self.reference, self.arms),
            )
        return self

    def guard(self, arm: str | None = None, policy: Mapping[str, Any] | None = None) -> GuardConfig:
        """Return the guard's settings in an arm.

        Args:
            arm: its name; without one, and for an arm without a guard, the settings are the common
                ones with no steerers.
            policy: options of a moderator `patterns`, which then belongs to gate and guide, too.

        Raises:
            ConfigError: the arm sets what is the same for every arm, or as in `GuardConfig.parse`.
        """
        own = self.arms[arm] if arm else None
        if own is None:
            own = {"steerers": []}
        for key in SHARED:
            if key in own or key in self.settings:
                raise ConfigError(
                    f"arm {arm!r} sets {key!r}",
                    hint=f"{', '.join(SHARED)} are set for all arms together",
                )
        same = {"backend": self.backend, "budget": self.budget, "seed": self.seed}
        where = f"arms.{arm}" if arm else "settings"
        merged = {**_merged(self.settings, own), **same}
        config = validated(GuardConfig, merged, where=where).resolved()
        if policy is None:
            return config
        member = Member(use="patterns", options=dict(policy))
        return config.model_copy(
            update={"gate": (*config.gate, member), "guide": (*config.guide, member)}
        )

    @classmethod
    def load(cls, config: str, *, n: int | None = None) -> BenchConfig:
        """Read settings from a YAML file, or those that ship under the name `config`.

        `n` replaces theirs.

        Raises:
            ConfigError: there is no such file, or its settings are wrong.
        """
        path = Path(config)
        if not path.suffix:
            folder = Path(str(resources.files("ttsa_guard.bench")))
            shipped = {p.stem: p for p in folder.glob("*.yaml")}
            if config not in shipped:
                raise ConfigError(
                    f"no benchmark is called {config!r}",
                    hint=f"{nearest(config, shipped)}; or give a YAML file",
                )
            path = shipped[config]
        data = read_yaml(path, hint="give a YAML file with the benchmark's settings")
        if n is not None and isinstance(data, dict):
            data["n"] = n
        return validated(cls, data, where="bench")


def _merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Lay `own` over `base`; mappings within are merged, everything else is replaced."""
    both = {
        key: _merged(base[key], own[key])
        for key in own
        if isinstance(base.get(key), dict) and isinstance(own[key], dict)
    }
    return {**base, **own, **both}


def _helpers(judge: Use) -> tuple[tuple[Any, ...], ...]:
    """Return the moderators that a judge asks besides itself."""
    return (_identity(Use(use="second_opinion")),) if judge.use == "encoder_judge" else ()


def _identity(use: Use) -> tuple[Any, ...]:
    """Return which moderator this is: thresholds and the like do not make it another one."""
    return use.use, *(use.options.get(key) for key in _TELLING)
