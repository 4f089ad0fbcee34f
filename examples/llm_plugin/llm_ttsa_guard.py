"""Guarded models for the command line tool `llm`."""

import asyncio
from collections.abc import Iterator
from functools import cached_property

import llm

from ttsa_guard import Guard, GuardConfig

MODELS = ("embedded", "smollm2")


@llm.hookimpl
def register_models(register) -> None:
    for name in MODELS:
        register(Guarded(name))


class Guarded(llm.Model):
    """A local model, of which every answer is reviewed before it is shown."""

    def __init__(self, model: str) -> None:
        self.model_id = f"guarded-{model}"
        self._model = model

    @cached_property
    def guard(self) -> Guard:
        backend = {"use": "transformers", "options": {"model": self._model}}
        return Guard.from_config(GuardConfig.parse({"backend": backend}))

    def execute(self, prompt, stream, response, conversation) -> Iterator[str]:
        turns = [] if prompt.system is None else [{"role": "system", "content": prompt.system}]
        for earlier in conversation.responses if conversation else ():
            turns.append({"role": "user", "content": earlier.prompt.prompt})
            turns.append({"role": "assistant", "content": earlier.text()})
        turns.append({"role": "user", "content": prompt.prompt})
        outcome = asyncio.run(self.guard.respond(turns))
        response.response_json = outcome.record.numbers()
        yield outcome.text
