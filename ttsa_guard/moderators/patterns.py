"""Check a policy that is given as patterns: what an answer must not contain, whatever it is about.

It is local. It is exact but for the language of an answer, which a small model finds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, get_args

from pydantic import Field

from ttsa_guard.errors import ConfigError
from ttsa_guard.languages import Language, LatinLanguage, is_latin, language
from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.settings import Settings
from ttsa_guard.text import LIST_ITEM, NEXT_ITEM
from ttsa_guard.verdict import Verdict

Policy = Literal["links", "lists", "personal_data", "doses"]
POLICIES: dict[Policy, str] = {
    "links": r"https?://\S+|\bwww\.\w\S*|\b[\w-]+\.(?:com|org|net|io|co\.uk|gov|edu)\b",
    "lists": f"{LIST_ITEM.pattern}|{NEXT_ITEM.pattern}",
    "personal_data": (
        r"[\w.+-]+@[\w-]+\.\w[\w.]*|(?<![\w.])\+?\(?\d{2,4}\)?(?:[ .-]?\d{2,4}){2,4}(?![\w.])"
    ),
    "doses": (
        r"\b\d+(?:[.,]\d+)*\s?(?:-|to)?\s?\d*\s?(?:mg|mcg|µg|ml|milligrams?|micrograms?|millilitres?|milliliters?"
        r"|tablets?|pills?|capsules?)\b"
    ),
}
"""The pattern of each policy."""
_WORD = re.compile(r"[^\W\d_]+")
_FEWEST_WORDS = 5
_SURE = 0.9
"""How probable another language must be: a name or a quotation in an answer does not make one."""


class PatternsOptions(Settings):
    """Options of the moderator ``patterns``. At least one of them has to be set."""

    policies: tuple[Policy, ...] = Field((), description="links, lists, personal_data, doses")
    names: tuple[str, ...] = Field((), description="words or names, in any case, as whole words")
    patterns: tuple[str, ...] = Field(
        (), description="regular expressions of Python, for each line"
    )
    language: Language | None = Field(
        None, description="the language, as a code of two letters, in which answers have to be"
    )


class Patterns:
    """Flags an answer if any pattern matches.

    The score is the higher, the more matches there are, so that a search sees progress. Patterns
    are used as they are written. One that backtracks for long does so here, too, within the guard's
    time limit for a gate call. An answer is in another language if `languages.language` is sure of
    that, or if its letters should be Latin and are not. Fewer than five words are in no language.
    """

    name = "patterns"

    def __init__(self, options: PatternsOptions) -> None:
        """Compile the patterns.

        Raises:
            ConfigError: there is nothing to look for, or a pattern is not a regular expression.
        """
        self.options = options
        names = [rf"(?<!\w){re.escape(name)}(?!\w)" for name in options.names if name.strip()]
        sources = [*(POLICIES[policy] for policy in options.policies), *names, *options.patterns]
        if not sources and not options.language:
            raise ConfigError(
                "the moderator patterns has nothing to look for",
                hint="set policies, names, patterns or language",
            )
        self._found = [_compiled(source) for source in sources]

    async def moderate(self, texts: Sequence[str], *, prompts: Sequence[str]) -> list[Verdict]:
        """Judge `texts`; `prompts` are not used."""
        return [self._verdict(text) for text in texts]

    def _verdict(self, text: str) -> Verdict:
        matches = sum(1 for pattern in self._found for _ in pattern.finditer(text))
        score = 1 - 0.5 ** (1 + matches / 2) if matches else 0.0
        if self.options.language and _in_another_language(text, self.options.language):
            score = 1.0
        return Verdict.scored(self.name, score, threshold=0.5, categories={"policy": score})


def _in_another_language(text: str, wanted: Language) -> bool:
    if wanted in get_args(LatinLanguage) and not is_latin(text):
        return True
    enough = len(_WORD.findall(text)) >= _FEWEST_WORDS
    return enough and language(text, sure=_SURE) not in (wanted, None)


def _compiled(source: str) -> re.Pattern[str]:
    try:
        return re.compile(source, re.IGNORECASE | re.MULTILINE)
    except re.error as error:
        raise ConfigError(
            f"a pattern is not a regular expression: {error.msg}", hint="see Python's module re"
        ) from None


@hookimpl
def ttsa_register_moderators(register: Register) -> None:
    """Offer the moderator as ``use: patterns``."""
    register("patterns", Patterns, options=PatternsOptions)
