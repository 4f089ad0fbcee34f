"""A moderator that flags answers in capital letters."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from ttsa_guard import Verdict, hookimpl


class NoShoutingOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    threshold: float = Field(
        0.5, ge=0, le=1, description="share of capital letters from which a text is flagged"
    )


class NoShouting:
    name = "no_shouting"

    def __init__(self, options: NoShoutingOptions) -> None:
        self.options = options

    async def moderate(self, texts: Sequence[str], *, prompts: Sequence[str]) -> list[Verdict]:
        return [
            Verdict.scored(self.name, shouted(text), threshold=self.options.threshold)
            for text in texts
        ]


def shouted(text: str) -> float:
    letters = [c for c in text if c.isalpha()]
    return sum(map(str.isupper, letters)) / len(letters) if letters else 0.0


@hookimpl
def ttsa_register_moderators(register) -> None:
    register("no_shouting", NoShouting, options=NoShoutingOptions)
