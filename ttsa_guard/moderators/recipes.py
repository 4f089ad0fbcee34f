"""Read how guard models are asked, as data: from ``guards.yaml``, and from recipes of users."""

from __future__ import annotations

import re
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, model_validator

from ttsa_guard.errors import ConfigError, nearest
from ttsa_guard.files import reason
from ttsa_guard.settings import Settings, validated


class Blank(Settings):
    """A field of the model's reply that comes before the verdict."""

    text: str
    values: tuple[str, ...] = Field(min_length=2)


class Recipe(Settings):
    """How one guard model is asked. ``guards.yaml`` explains the fields."""

    models: str = ""
    prompt: str | None = None
    raw: bool = False
    parts: bool = False
    options: dict[str, Any] = Field(default_factory=dict)
    views: dict[str, dict[str, Any]] = Field({"unsafe": {}}, min_length=1)
    before: tuple[Blank, ...] = ()
    prefill: str = ""
    harmful: dict[str, float] = Field(min_length=1)
    harmless: tuple[str, ...] = Field(min_length=1)
    markers: tuple[str, ...] = ()
    source: str = ""

    @model_validator(mode="after")
    def _asks_about_the_answer(self) -> Recipe:
        if self.raw and self.prompt is None:
            raise ValueError("raw needs a prompt")
        if self.prompt is not None and "{answer}" not in self.prompt:
            raise ValueError("prompt has no {answer}")
        if not all(0 < weight <= 1 for weight in self.harmful.values()):
            raise ValueError("weights of harmful verdicts are above 0 and at most 1")
        return self

    def user_turn(self, prompt: str, answer: str) -> str:
        """Return the template with `prompt` and `answer` in their places.

        Placeholders inside those two texts are left alone.
        """
        texts = {"{prompt}": prompt, "{answer}": answer}
        return re.sub(
            r"\{prompt\}|\{answer\}", lambda found: texts[found.group()], self.prompt or ""
        )


@lru_cache(maxsize=1)
def known() -> dict[str, Recipe]:
    """Return the shipped recipes, by name."""
    data = yaml.safe_load(
        (resources.files(__package__) / "guards.yaml").read_text(encoding="utf-8")
    )
    return {name: validated(Recipe, recipe, where=name) for name, recipe in data.items()}


def recipe_for(model: str, recipe: str | dict[str, Any] | None) -> Recipe:
    """Return a recipe.

    Args:
        model: the name of the guard model.
        recipe: the recipe as a mapping, a YAML file, or the name of a shipped recipe. None chooses
            by the model's name.

    Raises:
        ConfigError: there is no such recipe, or it is wrong.
    """
    if isinstance(recipe, dict):
        return validated(Recipe, recipe, where="recipe")
    if recipe is not None and recipe.endswith((".yml", ".yaml")):
        try:
            data = yaml.safe_load(Path(recipe).read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ConfigError(
                f"cannot read the recipe {recipe}: {reason(error)}", hint="give a YAML file"
            ) from None
        return validated(Recipe, data, where=recipe)
    if recipe is not None:
        if recipe not in known():
            raise ConfigError(f"there is no recipe {recipe!r}", hint=nearest(recipe, known()))
        return known()[recipe]
    fitting = [found for found in known().values() if re.search(found.models, model, re.IGNORECASE)]
    if not fitting:
        hint = (
            f"name one with recipe: {', '.join(known())}; or write your own, see"
            " ttsa_guard/moderators/guards.yaml"
        )
        raise ConfigError(f"no recipe is known for the guard model {model!r}", hint=hint)
    return fitting[0]
