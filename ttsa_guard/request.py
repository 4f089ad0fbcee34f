"""Find what a conversation asks for, without the text around the question."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile

from ttsa_guard.messages import Message
from ttsa_guard.text import QUESTION_MARKS, WORD, as_prose, split_sentences

_CLAUSES = re.compile(r"(?<=[,;:])\s+|(?<=[，；：、])|\s+(?=(?:and|but|then|so)\b)")
_ASKED = re.compile(rf"[{QUESTION_MARKS}]\W*$")
_SENTENCE_ENDS = re.compile(r"[.!?…。！？]\W*$")
_OPENS = r"\W*(?:(?:so|and|ok|okay|hey|hi|please|pls|can you|could you|i need you to)\b\W*)*"
_ASKS = re.compile(
    rf"{_OPENS}(?:what|how|why|who|whose|where|when|which)(?:'?s)?\b"
    rf"|{_OPENS}(?:(?:can|could|should|would|do|does|is|are) (?:i|we|you|u|it|there|they)|any)\b",
    re.IGNORECASE,
)
_REQUESTS = re.compile(
    rf"{_OPENS}(?:tell|give|show|teach|help|make|find|walk) (?:me|us)\b"
    rf"|{_OPENS}(?:explain|describe|suggest|recommend|share|compare|summari[sz]e|translate|name|list"
    r"|write|create|draft|compose|think of|come up with)\b"
    rf"|{_OPENS}(?:i(?:'?d|'?m| am| would)? )?(?:need|want|like|looking for) (?:a|an|some)\b",
    re.IGNORECASE,
)
_FEWEST_WORDS = 3
_GOES_ON = re.compile(r"\W*(?:and|but|or|so|also|(?:what|how) about|why not)\b", re.IGNORECASE)
_REFERS_BACK = re.compile(
    r"\b(?:it|its|this|that|these|those|they|them|their|he|him|his|she|her|one|ones|there|then|else"
    r"|another|again|instead)\b",
    re.IGNORECASE,
)
_EXPLAINS_ITSELF = 7
"""Words from which on a question says itself what its pronouns mean."""
_BEGINS_BACK = re.compile(r"\W*(?:it|its|this|that|these|those|they|he|she)\b", re.IGNORECASE)
_GENERAL = frozenset(
    "a about advice am an and any are at begin best better can could did do does doing for from get"
    " go going handle help how i idea ideas if in is like make me my next now of on or our out"
    " please pls right say should so some start suggestions tell that the then there thing think"
    " this thoughts tip tips to up us was way we what when where which who why will with would"
    " wrong you your".split()
)
"""English words that do not say what a question is about."""
_TELLS = re.compile(
    r"\W*(?:(?:so|and|but|well|ok|okay|hi|hey|hello)\b\W*)?(?:i|i'?(?:m|ve|d|ll)|my|we|we'?(?:re|ve|d)"
    r"|our|there|there's|the|a|an|this|that|last|every|since|when|whenever|after|before|because|in|on"
    r"|at|for|today|yesterday|tomorrow|tonight|lately|recently|somebody|someone|people)\b",
    re.IGNORECASE,
)
_OF_ONESELF = re.compile(r"\b(?:i|i'?(?:m|ve|d|ll)|my|me|mine|we|our|ours|us)\b", re.IGNORECASE)
_OF_THE_READER = re.compile(r"\b(?:you|you'?(?:re|ve|d|ll)|your|u|ur)\b", re.IGNORECASE)
_OF_SOMEBODY = re.compile(r"\W*(?:it|its|it's|they|their|he|his|she|her)\b", re.IGNORECASE)
_ADDRESSES = re.compile(
    r"\b(?:you|you'?(?:re|ll)|your|u|ur|users?|bots?|chat\W?bots?|assistants?|model|ai|repl(?:y|ies)"
    r"|answers?|rules?|insult\w*)\b",
    re.IGNORECASE,
)
"""What is said to or about the assistant. It may be what the model went wrong for."""
_ASIDE = re.compile(r"\s*(?:\([^()]*\)|\[[^\[\]]*\]|（[^（）]*）|【[^【】]*】)")


def split_parts(text: str) -> list[str]:
    """Return the sentences and lines of `text`; if it is only one, return the clauses of it."""
    sentences = sentences_and_lines(text)
    return (
        sentences if len(sentences) > 1 else [part for part in _CLAUSES.split(text.strip()) if part]
    )


def sentences_and_lines(text: str) -> list[str]:
    """Return the sentences of `text`. A line ends one, too."""
    return [sentence for line in text.splitlines() for sentence in split_sentences(line)]


def asking(text: str, asked: str | None = None) -> tuple[list[str], list[int]]:
    """Return the parts of `text` (see `split_parts`), and the indices of those that ask.

    These are the parts of `asked`, if that is a question that was found in `text` and leaves
    something out. Else those end with a question mark. If none does, and the parts are sentences,
    those ask that begin as an English question does ("how do i ..."), and else those that begin as
    an English request does ("Tell me ..."). Where such a request ends within a sentence cannot be
    seen. What the user tells of themselves right beside it belongs to it, too ("I spilled coffee on
    my jumper. How should I wash it?"). If nothing is told so, and no question says what it is about
    ("Any tips?"), the sentence before it does.
    """
    if asked and asked != without_asides(text):
        parts = split_parts(text)
        return parts, [i for i, part in enumerate(parts) if without_asides(part) in asked]
    parts, found = _asked(text)
    begun = {k for i in found for k in _clauses_before(parts, i)}
    if len(sentences_and_lines(text)) > 1:
        begun.update(k for i in found for k in _told_beside(parts, i))
    if all(_says_too_little(parts[i]) for i in found) and not begun:
        begun = {k for i in found for k in _told_before(parts, i)}
    return parts, sorted({*found, *begun})


def asking_alone(text: str) -> str:
    """Return the parts of `text` that ask, without what was told beside them.

    If they say too little without it, it stays. One sentence stays as it is.
    """
    parts, found = _asked(text)
    if len(sentences_and_lines(text)) < 2 or not found:
        return text
    if all(_says_too_little(parts[i]) for i in found):
        return " ".join(parts[i] for i in asking(text)[1])
    alone = {*found, *(k for i in found for k in _clauses_before(parts, i))}
    return " ".join(parts[i] for i in sorted(alone))


def _asked(text: str) -> tuple[list[str], list[int]]:
    parts = split_parts(text)
    sentences = len(sentences_and_lines(text)) > 1
    for asks in (_ASKED.search, *((_ASKS.match, _REQUESTS.match) if sentences else ())):
        if found := [i for i, part in enumerate(parts) if asks(part)]:
            break
    return parts, found


def _told_beside(parts: Sequence[str], asked: int) -> set[int]:
    """Return the sentences before and after a question in which users tell of themselves."""
    before = takewhile(lambda i: _tells(parts[i]), range(asked - 1, -1, -1))
    after = takewhile(lambda i: _tells(parts[i]), range(asked + 1, len(parts)))
    return {*before, *after}


def _tells(part: str) -> bool:
    if _ADDRESSES.search(part):
        return False
    of_oneself = _TELLS.match(part) and _OF_ONESELF.search(part)
    return bool(of_oneself or _OF_SOMEBODY.match(part))


def _says_too_little(part: str) -> bool:
    """Return whether a question does not say what it is about."""
    return not stands_alone(part) or _GENERAL.issuperset(WORD.findall(part.lower()))


def _told_before(parts: Sequence[str], asked: int) -> range:
    """Return the parts before a question that tell what it is about."""
    first = max(0, asked - 1)
    while first and _BEGINS_BACK.match(parts[first]):
        first -= 1
    return range(first, asked)


def _clauses_before(parts: Sequence[str], last: int) -> range:
    """Return the clauses before a part that belong to its question, if that begins in one."""
    if _ASKS.match(parts[last]):
        return range(0)
    for i in range(last - 1, -1, -1):
        if _SENTENCE_ENDS.search(parts[i]):
            break
        if _ASKS.match(parts[i]):
            return range(i, last)
    return range(0)


def without_asides(text: str) -> str:
    """Return `text` without what stands in brackets. If nothing else is there, return all of it."""
    return _ASIDE.sub("", text).strip() or text.strip()


def question(text: str) -> str:
    """Return the parts of `text` that ask, without asides. If none does, return all of it."""
    plain = without_asides(text)
    parts, asks = asking(plain)
    return " ".join(parts[i] for i in asks) or plain


def form(sentence: str) -> list[float]:
    """Return eight numbers that say what form a sentence has.

    Seven are 0 or 1: whether it ends with a question mark, begins as a question, begins as a
    request, speaks of the assistant, tells something of the user, has "I", and has "you". The last
    is its length, in twenties of words.
    """
    found = (
        _ASKED.search(sentence),
        _ASKS.match(sentence),
        _REQUESTS.match(sentence),
        _ADDRESSES.search(sentence),
        _tells(sentence),
        _OF_ONESELF.search(sentence),
        _OF_THE_READER.search(sentence),
    )
    return [*(float(bool(one)) for one in found), len(sentence.split()) / 20]


def stands_alone(text: str) -> bool:
    """Return whether a question can be understood without the turns before it.

    A question cannot if it has few words, begins as English goes on ("And ..."), or is short and
    has an English word that refers to something said before.
    """
    words = len(WORD.findall(text))
    if words < _FEWEST_WORDS or _GOES_ON.match(text):
        return False
    return words >= _EXPLAINS_ITSELF or not _REFERS_BACK.search(text)


def understood(asked: Sequence[str]) -> list[str]:
    """Return the questions of turns, each that does not stand alone with what it leans on."""
    found: list[str] = []
    for text in asked:
        found.append(text if not found or stands_alone(text) else f"{found[-1]} {text}")
    return found


def said_besides(messages: Sequence[Message], asked: str) -> list[str]:
    """Return the sentences of the conversation besides the question of the last user message.

    Items of lists become sentences, without their marks.
    """
    last = max(i for i, m in enumerate(messages) if m.role == "user")
    beside = sentences_and_lines(messages[last].content)
    said = [m.content for m in messages[:last]]
    said.append("\n".join(s for s in beside if without_asides(s) not in asked))
    return [s for text in said for s in sentences_and_lines(as_prose(text))]


def questions(
    messages: Sequence[Message], asked: str, needed: Sequence[str] = ()
) -> list[list[Message]]:
    """Return the conversation, reduced to what is asked, in one or two versions.

    `asked` is the question of the last user message. In one version, that message is only its
    question. The other is that question alone; it is left out if the conversation has nothing
    before it. It comes first if the last message is only its question and stands alone, because
    then what the model went wrong for was said before.

    Args:
        needed: sentences of the conversation that the question is about. They stand before the
            question where it is asked alone, and that version comes first.
    """
    last = max(i for i, m in enumerate(messages) if m.role == "user")
    before = list(messages[:last])
    alone = replace(messages[last], content=asked)
    with_needed = replace(alone, content=" ".join([*needed, asked]))
    if not before:
        return [[with_needed]]
    found = [[*before, alone], [with_needed]]
    alone_first = needed or (asked == messages[last].content and stands_alone(asked))
    return found[::-1] if alone_first else found
