"""Apps of Colang 2.x: what threads must not change at once, and what is too large to evaluate."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from threading import RLock, local
from typing import Any

from nemoguardrails.colang.v2_x.runtime import eval as evaluation
from nemoguardrails.colang.v2_x.runtime import statemachine
from nemoguardrails.colang.v2_x.runtime.flows import State
from nemoguardrails.rails.llm.llmrails import LLMRails

from ttsa_guard.nemo.redaction import text_without_images


def separate_threads(app: LLMRails) -> None:
    """Give every thread flows of its own, and let one thread at a time evaluate expressions.

    The host expands the flows with every request, in objects that all requests share. Where two
    threads do that at once, flows are left with wrong labels, and answers are empty. Colang 1.0
    needs none of this.
    """
    if app.config.colang_version == "1.0":
        return
    _lock_evaluation()
    _evaluate_without_images()
    plain, flows, own = app.runtime.process_events, deepcopy(app.runtime.flow_configs), local()

    async def process_events(
        events: list[Any], state: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        if not state:
            if not hasattr(own, "flows"):
                own.flows = deepcopy(flows)
            state = State(flow_states={}, flow_configs=own.flows, rails_config=app.config)
            statemachine.initialize_state(state)
        return await plain(events, state, *args, **kwargs)

    app.runtime.process_events = process_events


@cache
def _lock_evaluation() -> None:
    """Let one thread at a time evaluate: the evaluator changes the filters of `warnings`."""
    plain, lock = evaluation.eval_expression, RLock()

    def eval_expression(expr: str, context: dict[str, Any]) -> Any:
        with lock:
            return plain(expr, context)

    evaluation.eval_expression = statemachine.eval_expression = eval_expression


@cache
def _evaluate_without_images() -> None:
    """Leave images out of texts with variables in them.

    The host writes what a user has sent into such a text, and its evaluator fails where that is
    longer than 100 000 characters, as images are. Content parts are a list there.
    """
    plain = evaluation.escape_special_string_characters

    def escape_special_string_characters(value: str) -> str:
        escaped: str = plain(text_without_images(value) if value.startswith("[{") else value)
        return escaped

    evaluation.escape_special_string_characters = escape_special_string_characters
