"""Write conversations in a model's chat template, and find the tokens whose embeddings may move."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from ttsa_guard.errors import PromptError
from ttsa_guard.hf.tokens import markers, without_markers
from ttsa_guard.messages import Message, Prompt, Scope, Soft, Tokens
from ttsa_guard.reasoning import CLOSE, OPEN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ttsa_guard.hf.light import LightTokenizer

    ChatTokenizer: TypeAlias = PreTrainedTokenizerBase | LightTokenizer

_MARK = "\ue000content\ue000"  # characters for private use, which no template contains
_OPENED = re.compile(rf"{OPEN}\s*\Z")
"""Matches the end of the prompt of a model that always reasons."""
_SWITCH = "enable_thinking"
"""The variable that turns reasoning on or off in the templates of models that may reason."""


def render(
    tokenizer: ChatTokenizer,
    messages: Sequence[Message],
    *,
    scope: Scope,
    **template_options: Any,
) -> Prompt:
    """Write the conversation in the model's template, ready for an answer without reasoning.

    Args:
        scope: the part whose embeddings become soft: "user" is the content of the last user
            message, "all" is everything.
        template_options: are passed to the template.

    Raises:
        PromptError: the conversation is empty, the model has no chat template, or the template
            refuses the conversation.
    """
    _, encoded, (first, last) = _encoded(tokenizer, messages, scope, template_options)
    flags = [end > first and start < last for start, end in encoded["offset_mapping"]]
    return Prompt(_segments(encoded["input_ids"], flags))


def render_reasoning(
    tokenizer: ChatTokenizer, messages: Sequence[Message], **template_options: Any
) -> tuple[Prompt, str]:
    """Write the conversation for an answer with reasoning; see `Reasons.render_reasoning`."""
    text = _templated(tokenizer, _turns(tokenizer, messages), template_options)
    opened = _OPENED.search(text)
    if not opened and _SWITCH not in str(tokenizer.chat_template):
        return render(tokenizer, messages, scope="user", **template_options), ""
    if opened:
        # The template opens the block of reasoning. The answer opens it instead, so that the text
        # shows where the block begins.
        text = text[: opened.start()]
    ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    return Prompt((Tokens(ids),)), opened.group() if opened else ""


def answering(tokenizer: ChatTokenizer, template_options: dict[str, Any]) -> dict[str, Any]:
    """Return the options, with reasoning switched off if the model's template can do that."""
    if _SWITCH not in str(tokenizer.chat_template):
        return template_options
    return {**template_options, _SWITCH: False}


def locate(
    tokenizer: ChatTokenizer,
    messages: Sequence[Message],
    *,
    turn: int | None = None,
    **template_options: Any,
) -> tuple[str, list[tuple[int, int]]]:
    """Find the words of one message among the tokens; see `ExposesLogProbs.locate`."""
    text, encoded, (first, last) = _encoded(tokenizer, messages, "user", template_options, turn)
    spans = [
        (min(max(start, first), last), min(max(end, first), last))
        for start, end in encoded["offset_mapping"]
    ]
    return text[first:last], [(start - first, end - first) for start, end in spans]


def _encoded(
    tokenizer: ChatTokenizer,
    messages: Sequence[Message],
    scope: Scope,
    template_options: dict[str, Any],
    turn: int | None = None,
) -> tuple[str, Any, tuple[int, int]]:
    """Return the conversation as text, as tokens with their offsets, and the span of `scope`.

    The span is [first, last), in characters of the text. With the scope "user" it is that of the
    message with the index `turn`; None means the last user message.
    """
    turns = _turns(tokenizer, messages)
    asked = turn
    if asked is None:
        asked = max(i for i, t in enumerate(turns) if t["role"] == "user" and t["content"].strip())
    template_options = answering(tokenizer, template_options)
    text = _templated(tokenizer, turns, template_options)
    if _OPENED.search(text):
        text = f"{text.rstrip()}\n\n{CLOSE}\n\n"
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    first, last = 0, len(text)
    if scope == "user":
        other = [*turns[:asked], {**turns[asked], "content": _MARK}, *turns[asked + 1 :]]
        marked = _templated(tokenizer, other, template_options)
        first, last = _content_span(text, marked, turns[asked]["content"].strip())
    return text, encoded, (first, last)


def _turns(tokenizer: ChatTokenizer, messages: Sequence[Message]) -> list[dict[str, str]]:
    if not tokenizer.chat_template:
        raise PromptError(
            "the model has no chat template",
            hint="choose an instruction-tuned model, or set tokenizer.chat_template",
        )
    special = markers(tokenizer)
    turns = [{"role": m.role, "content": without_markers(special, m.content)} for m in messages]
    if not any(t["role"] == "user" and t["content"].strip() for t in turns):
        raise PromptError(
            "the conversation has no user text", hint="give at least one non-empty user message"
        )
    return turns


def _templated(
    tokenizer: ChatTokenizer, turns: list[dict[str, str]], options: dict[str, Any]
) -> str:
    from jinja2 import TemplateError  # the tokenizer has it, too, once a template is written

    for conversation in (turns, _system_folded(turns)):
        try:
            return str(
                tokenizer.apply_chat_template(
                    conversation, tokenize=False, add_generation_prompt=True, **options
                )
            )
        except TemplateError as error:
            problem = error
    raise PromptError(
        f"the model's chat template refuses the conversation: {problem}",
        hint="roles must alternate",
    )


def _system_folded(turns: list[dict[str, str]]) -> list[dict[str, str]]:
    """Put the system text before the first user text, for templates without a system role."""
    system = "\n\n".join(t["content"] for t in turns if t["role"] == "system")
    rest = [dict(t) for t in turns if t["role"] != "system"]
    if system and rest and rest[0]["role"] == "user":
        rest[0]["content"] = f"{system}\n\n{rest[0]['content']}"
    return rest


def _content_span(text: str, marked: str, content: str) -> tuple[int, int]:
    """Return the span [first, last) of `content` in `text`, in characters.

    It is found with the help of `marked`, the same text with a mark in place of the content,
    because the words of the content may also occur in other turns and in the template.
    """
    before, _, after = marked.rpartition(_MARK)
    before = before.replace(_MARK, content)
    start = text.find(content, len(before)) if text.startswith(before) else -1
    if start < 0 or len(text) - start - len(content) < len(after):
        start = text.rfind(content)  # the template changes with the content
    return (start, start + len(content)) if start >= 0 else (0, len(text))


def _segments(ids: Sequence[int], flags: Sequence[bool]) -> tuple[Tokens | Soft, ...]:
    segments: list[Tokens | Soft] = []
    start = 0
    for i in range(1, len(ids) + 1):
        if i == len(ids) or flags[i] != flags[start]:
            segments.append((Soft if flags[start] else Tokens)(tuple(ids[start:i])))
            start = i
    return tuple(segments)
