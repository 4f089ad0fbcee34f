"""A plugin as a stranger might write it: an object with hooks, a moderator, and an observer."""

import os

from pydantic import BaseModel, ConfigDict, Field

from ttsa_guard import Verdict, hookimpl


class WordListOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")

    words: list[str] = Field(min_length=1, description="words that no answer may have")


class WordList:
    name = "word_list"

    def __init__(self, options):
        self.words = options.words

    async def moderate(self, texts, *, prompts):
        return [
            Verdict.scored(self.name, float(any(w in t for w in self.words)), threshold=0.5)
            for t in texts
        ]


class Plugin:
    @hookimpl
    def ttsa_register_moderators(self, register):
        register("word_list", WordList, options=WordListOptions)

    @hookimpl
    def ttsa_guard_finished(self, record):
        with open(os.environ["REVIEWS"], "a") as file:
            file.write(f"{record.action} {record.gate_score}\n")


plugin = Plugin()
