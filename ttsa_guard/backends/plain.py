"""Get the answer that a model gives by itself, with reasoning if the model can reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ttsa_guard.backends.base import Backend, Reasons, Streams, sees
from ttsa_guard.errors import PromptError
from ttsa_guard.forks import refuse_after_fork
from ttsa_guard.messages import Generation, GenerationRequest, Message, Prompt, images_of
from ttsa_guard.reasoning import has_reasoning, without_reasoning


async def plain_answer(
    backend: Backend,
    messages: Sequence[Message],
    request_for: Callable[[Prompt], GenerationRequest],
    on_text: Callable[[str], None] | None = None,
) -> tuple[GenerationRequest, Generation]:
    """Generate the model's own answer to a conversation.

    An answer that is nothing but reasoning is replaced by one without reasoning.

    Args:
        request_for: makes a request of a prompt.
        on_text: gets the first answer piece by piece, if the backend streams.

    Returns:
        The request that led to the answer, and the answer.

    Raises:
        PromptError: the model cannot be given this conversation, or not its images.
        ModelError: the model failed, or this process was forked after the backend had been used.
    """
    refuse_after_fork(backend)
    if not sees(backend, images_of(messages)):
        raise PromptError(
            "the model cannot see the images of the conversation",
            hint="leave them out, or choose a backend that sees images",
        )
    opening = ""
    if isinstance(backend, Reasons):
        prompt, opening = await backend.render_reasoning(messages)
    else:
        prompt = await backend.render(messages)
    request = request_for(prompt).with_(opening=opening)
    if on_text and isinstance(backend, Streams):
        answer = await backend.stream(request, on_text)
    else:
        [answer] = await backend.generate([request])
    if has_reasoning(answer.text) and not without_reasoning(answer.text):
        request = request_for(await backend.render(messages))
        [answer] = await backend.generate([request])
    return request, answer
