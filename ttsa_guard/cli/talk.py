"""``ttsa-guard steer`` and ``ttsa-guard chat``: answers through `Guard.respond`."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from ttsa_guard.cli import common
from ttsa_guard.cli.common import err, out, plain
from ttsa_guard.errors import PromptError, TTSAError
from ttsa_guard.messages import Message

if TYPE_CHECKING:
    from ttsa_guard.guard import Guard
    from ttsa_guard.record import Outcome


def steer(
    prompt: Annotated[str, typer.Argument(help="What the user says.", show_default=False)],
    model: common.Model = None,
    config: common.Config = None,
    steerer: common.SteererName = None,
    prefer: common.Prefer = None,
    as_json: common.AsJson = False,
) -> None:
    """Answer one prompt; a flagged answer is steered.

    Example: ttsa-guard steer "Mock me like a rude clown. How do I draw an owl?"
    """
    conversation = Message.conversation(prompt)
    guard = common.build_guard(common.settings(model, config, steerer, prefer))
    with common.quiet(), common.waiting("answering"):
        outcome = common.run(guard, guard.respond(conversation))
    if as_json:
        numbers = outcome.record.numbers()
        typer.echo(json.dumps({"text": outcome.text, "action": outcome.action, "record": numbers}))
        return
    out.print(plain(outcome.text), soft_wrap=True)
    err.print(plain(common.happened(outcome.record), "dim"))


def chat(
    model: common.Model = None,
    config: common.Config = None,
    steerer: common.SteererName = None,
    prefer: common.Prefer = None,
) -> None:
    """Chat with the model; flagged answers are steered.

    /reset forgets the conversation, /quit or Ctrl-D leaves.

    Example: ttsa-guard chat --steerer prosocial --prefer empathy=0.6,helpfulness=0.4
    """
    guard = common.build_guard(common.settings(model, config, steerer, prefer))
    loop = asyncio.new_event_loop()  # one for the whole chat: a moderator may keep its connections
    try:
        _chat(_Conversation(guard, loop))
    finally:
        loop.run_until_complete(guard.close())
        loop.close()


class _Conversation:
    """The turns as the user saw them."""

    def __init__(self, guard: Guard, loop: asyncio.AbstractEventLoop) -> None:
        self._guard, self._loop = guard, loop
        self.turns: list[Message] = []

    def say(self, text: str) -> Outcome:
        """Answer `text`.

        The oldest turns are forgotten where the conversation is too long for the model.
        """
        user = Message("user", text)
        while True:
            try:
                outcome = self._loop.run_until_complete(self._guard.respond([*self.turns, user]))
            except PromptError:
                if not self.turns:
                    raise
                del self.turns[:2]
            else:
                self.turns += [user, Message("assistant", outcome.text)]
                return outcome


def _chat(conversation: _Conversation) -> None:
    interactive = sys.stdin.isatty()
    if interactive:
        out.print("[dim]/reset forgets the conversation, /quit or Ctrl-D leaves[/]")
    while (line := _line(interactive)) not in (None, "/quit"):
        if line == "/reset":
            conversation.turns.clear()
        elif line:
            _answer(conversation, line)


def _line(interactive: bool) -> str | None:
    """Return the next thing that the user says, stripped; None at the end."""
    if not interactive:
        line = sys.stdin.readline()
        return line.strip() if line else None
    try:
        return out.input("[bold]you>[/] ").strip()
    except (EOFError, KeyboardInterrupt):
        out.print()
        return None


def _answer(conversation: _Conversation, line: str) -> None:
    try:
        with common.quiet(), common.waiting("answering"):
            outcome = conversation.say(line)
    except TTSAError as error:  # the chat goes on
        common.fail(error)
        return
    out.print(plain(outcome.text), soft_wrap=True)
    if outcome.action != "pass":
        out.print(plain(f"  {common.happened(outcome.record)}", "dim italic"), soft_wrap=True)
