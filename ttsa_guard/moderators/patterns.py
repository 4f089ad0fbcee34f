"""Check a policy that is given as patterns: what an answer must not contain, whatever it is about.

It is exact and local, and needs no model.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from ttsa_guard.errors import ConfigError
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
_COMMON: dict[str, frozenset[str]] = {
    "en": frozenset(
        "the and of to a is in you i that it for are with this your my as on be can do or have how"
        " what not was by from at we if".split()
    ),
    "es": frozenset(
        "el la de que y en los las un una es por para con se su del como más está".split()
    ),
    "fr": frozenset(
        "le la les de des et à un une est pour dans que qui vous il en du ce avec".split()
    ),
    "de": frozenset(
        "der die das und ist in zu den mit sie ein eine nicht auf für von es sich im auch".split()
    ),
    "it": frozenset(
        "il la di che e un una per in è con non sono del della le si come più gli".split()
    ),
    "pt": frozenset("o a de que e um uma para com em os as do da é não por mais como se".split()),
}
Language = Literal["en", "es", "fr", "de", "it", "pt"]
_WORD = re.compile(r"[^\W\d_]+")
_FEWEST_WORDS = 5


class PatternsOptions(Settings):
    """Options of the moderator ``patterns``. At least one of them has to be set."""

    policies: tuple[Policy, ...] = Field((), description="links, lists, personal_data, doses")
    names: tuple[str, ...] = Field((), description="words or names, in any case, as whole words")
    patterns: tuple[str, ...] = Field(
        (), description="regular expressions of Python, for each line"
    )
    language: Language | None = Field(
        None, description="in which answers have to be: en, es, fr, de, it or pt"
    )


class Patterns:
    """Flags an answer if any pattern matches.

    The score is the higher, the more matches there are, so that a search sees progress. Patterns
    are used as they are written. One that backtracks for long does so here, too, within the guard's
    time limit for a gate call. An answer is in another language if its commonest words are those of
    another one, or if its letters are not Latin. Fewer than five words are in no language.
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
        wanted = self.options.language
        if wanted and language(text) not in (wanted, None):
            score = 1.0
        return Verdict.scored(self.name, score, threshold=0.5, categories={"policy": score})


def language(text: str, *, fewest: int = _FEWEST_WORDS) -> str | None:
    """Return the language of a text, as far as its commonest words tell.

    It is "other" if most words are not in Latin script, and None if the language cannot be told.

    Args:
        fewest: the language of a text with fewer words is not told.
    """
    words = [word.casefold() for word in _WORD.findall(text)]
    if sum(1 for word in words if any(ord(c) > 0x24F for c in word)) > len(words) / 2:
        return "other"
    if len(words) < fewest:
        return None
    counts = Counter(
        {name: sum(word in common for word in words) for name, common in _COMMON.items()}
    )
    [(best, most), (_, second)] = counts.most_common(2)
    return best if most > second else None


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
