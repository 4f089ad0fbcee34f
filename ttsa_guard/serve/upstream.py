"""The chat model behind the endpoint: any server that speaks OpenAI's protocol."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from ttsa_guard.errors import ConfigError, ModeratorError
from ttsa_guard.serve.faults import garbage, upstream_failed
from ttsa_guard.serve.wire import ChatRequest, ModelAnswer
from ttsa_guard.service import Http, base_address

_LARGEST = 2**24
"""Largest answer, in bytes."""


class Upstream:
    """Asks the chat model. Every error is an `ApiError` that leaks nothing.

    Args:
        url: the base URL, such as ``https://api.example.com/v1``. Without a path, ``/v1`` is added.
        key: the key of that server, sent as a bearer token; None: none is sent.
        timeout: seconds that it may stay silent.
        connections: most connections at the same time.

    Raises:
        ConfigError: the URL is none, or holds a key.
    """

    def __init__(
        self, url: str, *, key: str | None = None, timeout: float = 120.0, connections: int = 64
    ) -> None:
        self.url = base_url(url)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        # Clients try again themselves, so one try is enough.
        self._http = Http(timeout=timeout, tries=1, connections=connections, largest=_LARGEST)

    async def complete(self, asked: ChatRequest) -> ModelAnswer:
        """Return the model's whole answer.

        Raises:
            ApiError: there is none.
        """
        try:
            found = await self._http.post(
                f"{self.url}/chat/completions", asked.body, headers=self._headers
            )
        except ModeratorError as error:
            raise upstream_failed(error) from None
        answer = ModelAnswer()
        answer.add(found, "message")
        return answer

    async def stream(self, asked: ChatRequest, answer: ModelAnswer) -> AsyncGenerator[str, None]:
        """Yield the texts of the model's answer as they come, and fill `answer` with all of it.

        Raises:
            ApiError: the answer does not come to its end.
        """
        body = {**asked.body, "stream": True}
        if asked.stream_options:
            body["stream_options"] = asked.stream_options
        events = self._http.events(f"{self.url}/chat/completions", body, headers=self._headers)
        try:
            async with aclosing(events):
                async for found in events:
                    yield answer.add(found, "delta")
        except ModeratorError as error:
            raise upstream_failed(error) from None

    async def models(self) -> Any:
        """Return the list of models, as the upstream gives it.

        Raises:
            ApiError: it gives none.
        """
        try:
            found = await self._http.get(f"{self.url}/models", headers=self._headers)
        except ModeratorError as error:
            raise upstream_failed(error) from None
        if not isinstance(found, dict):
            raise garbage("its list of models is none")
        return found

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()


def base_url(url: str) -> str:
    """Return a base URL without a slash at its end, and with a path.

    Raises:
        ConfigError: it is none, or holds a key.
    """
    try:
        return base_address(url)
    except ValueError as error:
        raise ConfigError(
            f"--upstream {error}",
            hint=(
                "give an address such as http://127.0.0.1:8000/v1, and a key by"
                " --upstream-key-env NAME"
            ),
        ) from None
