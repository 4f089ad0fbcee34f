"""The parts of a model that a client of a vLLM server needs.

They are the tokenizer, the chat template, and the table of input embeddings.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar

import torch
from jinja2 import TemplateError
from safetensors import safe_open
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from ttsa_guard.backends.vllm.texts import ChatPrompt, TextHalf
from ttsa_guard.errors import ModelError
from ttsa_guard.hf.chat_template import render
from ttsa_guard.hf.light import all_ends
from ttsa_guard.hf.loading import load_config, load_tokenizer
from ttsa_guard.hf.source import Source
from ttsa_guard.hf.tokens import markers, without_markers
from ttsa_guard.messages import Message, Prompt, Scope

PLACEHOLDER = "<prompt_embeds>"
"""Takes the place of a message that is sent as embeddings, in the server's chat template."""
_TABLES = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "embed_in.weight",
    "tok_embeddings.weight",
)
_WANTED = (
    "'embedded', a local folder, or a name on the Hugging Face hub (offline: only what is in its"
    " cache)"
)


class LocalHalf(TextHalf):
    """A model without its weights but for its input embeddings.

    Only one tensor is read, the table of input embeddings, from safetensors.

    Args:
        path: a folder, or a name on the Hugging Face hub.
        dtype: the precision of the embeddings that are sent; "auto" is that of the stored table.
        template_options: are passed to the chat template. If answers are to begin without
            reasoning, the switch for that is added.

    Raises:
        ModelError: the tokenizer or the table cannot be loaded.
    """

    embeds: ClassVar[bool] = True

    def __init__(self, path: str, dtype: str, template_options: dict[str, Any]) -> None:
        self.begun = lru_cache(1024)(self._begun)  # it is asked again for every probe of a search
        source = Source(path)
        tokenizer = load_tokenizer(source, wanted=_WANTED)
        config = load_config(source, wanted=_WANTED)
        try:
            self.table = _table(path)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(
                f"the embeddings of {path!r} cannot be loaded: {type(error).__name__}",
                hint=f"give {_WANTED}",
            ) from error
        self.dtype: torch.dtype = self.table.dtype if dtype == "auto" else getattr(torch, dtype)
        self.token_norm = float(self.table[:8192].float().norm(dim=-1).mean())
        limit = getattr(config.get_text_config(), "max_position_embeddings", None)
        ends = _ends(path, config, tokenizer)
        super().__init__(
            tokenizer, ends, int(limit or tokenizer.model_max_length), template_options
        )
        self._marked = copy.deepcopy(self.tokenizer)
        self._marked.add_special_tokens({"additional_special_tokens": [PLACEHOLDER]})

    # ------------------------------------------------------------------ texts

    def render(self, messages: Sequence[Message], *, scope: Scope) -> Prompt:
        """Write the conversation in the model's chat template; see `Backend.render`.

        The result is a `ChatPrompt` if the server would make the same tokens around the soft
        embeddings.
        """
        prompt = render(self.tokenizer, messages, scope=scope, **self.template_options)
        special = markers(self.tokenizer)
        turns = tuple((m.role, without_markers(special, m.content)) for m in messages)
        asked = max(i for i, (role, text) in enumerate(turns) if role == "user" and text.strip())
        chat = ChatPrompt(prompt.segments, turns, asked)
        return chat if scope == "user" and self._renders_alike(chat, ()) else prompt

    def _begun(self, prompt: ChatPrompt, tail: tuple[int, ...]) -> str | None:
        """Return the text of the assistant's turn of which the server makes the ids `tail`.

        It is None if there is no such text.
        """
        return self.decode(tail) if not tail or self._renders_alike(prompt, tail) else None

    def _renders_alike(self, prompt: ChatPrompt, tail: tuple[int, ...]) -> bool:
        """Return whether the server makes the ids of `prompt` and `tail` of the conversation.

        The tail is the beginning of the assistant's turn.
        """
        if any(PLACEHOLDER in text for i, (_, text) in enumerate(prompt.turns) if i != prompt.soft):
            return False  # the server refuses texts with the placeholder
        turns = [
            {"role": role, "content": PLACEHOLDER if i == prompt.soft else text}
            for i, (role, text) in enumerate(prompt.turns)
        ]
        if tail:
            turns.append({"role": "assistant", "content": self.decode(tail)})
        end: dict[str, Any] = {
            "add_generation_prompt": not tail,
            "continue_final_message": bool(tail),
        }
        try:
            text = self.tokenizer.apply_chat_template(
                turns, tokenize=False, **end, **self.template_options
            )
        except (TemplateError, ValueError):
            return False
        ids = self._marked(text, add_special_tokens=False)["input_ids"]
        at = [
            i
            for i, token in enumerate(ids)
            if token == self._marked.convert_tokens_to_ids(PLACEHOLDER)
        ]
        if len(at) != 1 or prompt.soft_positions != tuple(
            range(at[0], at[0] + len(prompt.soft_ids))
        ):
            return False
        return (*prompt.ids, *tail) == (*ids[: at[0]], *prompt.soft_ids, *ids[at[0] + 1 :])

    # ------------------------------------------------------------------ embeddings

    def embed(self, ids: Sequence[int]) -> torch.Tensor:
        """Return the embeddings of token ids, [len(ids), hidden], in the precision that is sent.

        Raises:
            ModelError: the model has no such ids.
        """
        try:
            return self.table[torch.tensor(list(ids), dtype=torch.long)].to(self.dtype)
        except IndexError:
            raise ModelError(
                "the model does not have these token ids",
                hint="render prompts with the same backend",
            ) from None

    def checked(self, prompt: Prompt, soft_embeds: torch.Tensor) -> torch.Tensor:
        """Return `soft_embeds`, [k, hidden], in the precision that is sent.

        They have to be finite: a server takes others and never answers.

        Raises:
            ModelError: `soft_embeds` has another shape than the prompt's slots, or is not finite.
        """
        wanted = (len(prompt.soft_ids), self.table.shape[1])
        if soft_embeds.shape != wanted:
            raise ModelError(
                f"soft embeddings have shape {tuple(soft_embeds.shape)}, the prompt takes {wanted}",
                hint="they are [number of soft tokens, hidden size]",
            )
        sent = soft_embeds.detach().to("cpu", self.dtype)
        if not bool(torch.isfinite(sent).all()):
            raise ModelError(
                "soft embeddings are not finite",
                hint="a step or probe size is too large, or a score was NaN",
            )
        return sent

    def assemble(
        self, prompt: Prompt, soft_embeds: torch.Tensor, tail: Sequence[int]
    ) -> torch.Tensor:
        """Return the embeddings of a whole prompt and of the tokens `tail`, [length, hidden].

        Args:
            soft_embeds: the soft embeddings, [k, hidden], which are put into the prompt's soft
                slots.
        """
        whole = self.embed([*prompt.ids, *tail])
        whole[list(prompt.soft_positions)] = self.checked(prompt, soft_embeds)
        return whole


def _table(path: str) -> torch.Tensor:
    """Return the input embeddings, [vocabulary, hidden], as they are stored.

    Raises:
        ModelError: there are no safetensors, or it is unclear which tensor is the table.
    """
    index = cached_file(
        path, "model.safetensors.index.json", _raise_exceptions_for_missing_entries=False
    )
    if index is not None:
        with open(index, encoding="utf-8") as text:
            files: dict[str, str] = json.load(text)["weight_map"]
    else:
        with safe_open(_file(path, "model.safetensors"), "pt") as weights:
            files = dict.fromkeys(weights.keys(), "model.safetensors")
    found = [name for name in files if name.endswith(_TABLES)]
    if len(found) != 1:
        raise ModelError(
            f"{len(found)} tensors of {path!r} look like input embeddings",
            hint="use the backend 'transformers'",
        )
    with safe_open(_file(path, files[found[0]]), "pt") as weights:
        table: torch.Tensor = weights.get_tensor(found[0])
    return table


def _file(path: str, name: str) -> str:
    found = cached_file(path, name, _raise_exceptions_for_missing_entries=False)
    if found is None:
        raise ModelError(f"{path!r} has no {name}", hint=f"give {_WANTED}")
    return found


def _ends(path: str, config: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that end an answer."""
    try:
        found = GenerationConfig.from_pretrained(path).eos_token_id
    except OSError:
        found = getattr(config.get_text_config(), "eos_token_id", None)
    return all_ends(found, tokenizer.eos_token_id)
