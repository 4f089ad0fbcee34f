"""What a client is told of a fault, in OpenAI's error format. No message quotes a text or a key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ttsa_guard.errors import ModeratorError

_OURS = {429: "rate_limit_error", 404: "not_found_error"}


class ApiError(Exception):
    """A request is answered with an error.

    Args:
        status: the HTTP status.
        message: what is wrong, where, and how to mend it.
        kind: OpenAI's ``type`` of the error.
        code: OpenAI's ``code``; a word for programs.
        param: the field of the request that is wrong.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.kind, self.code, self.param = kind, code, param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Return the JSON body of the answer."""
        told = {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }
        return {"error": told}


def wrong(param: str | None, problem: str, hint: str, *, status: int = 400) -> ApiError:
    """Return the error of a request with a wrong field, or that is wrong as a whole."""
    return ApiError(status, f"{problem}; {hint}", param=param, code="invalid_request")


def upstream_failed(error: ModeratorError) -> ApiError:
    """Return what a client may know of a failure of the upstream: never its words.

    A request that the upstream refuses is the client's fault, and keeps its status. All else is
    502, a wrong key for the upstream too.
    """
    status = error.status
    if status in (400, 404, 413, 422):
        return ApiError(
            status,
            f"the upstream refuses the request with HTTP {status};"
            " check the model's name, the fields and the length of the request",
            kind=_OURS.get(status, "invalid_request_error"),
            code="upstream_refused",
        )
    if status == 429:
        return ApiError(
            status,
            "the upstream has too many requests, HTTP 429; try again later",
            kind=_OURS[status],
            code="upstream_busy",
        )
    if status in (401, 402, 403):
        return bad_gateway(
            f"the upstream refuses this server's key with HTTP {status}",
            "its operator should check --upstream-key-env",
        )
    return bad_gateway(
        f"the upstream failed: {error.message}",
        "try again; if it stays, its operator should check --upstream",
    )


def bad_gateway(problem: str, hint: str) -> ApiError:
    """Return the error of an upstream that fails."""
    return ApiError(502, f"{problem}; {hint}", kind="api_error", code="upstream_failed")


def garbage(what: str) -> ApiError:
    """Return the error of an upstream whose answer is no chat completion."""
    return bad_gateway(
        f"the upstream's answer is no chat completion: {what}",
        "--upstream should be the base URL of an OpenAI-compatible server",
    )


def internal() -> ApiError:
    """Return the error of a fault of this server."""
    return ApiError(
        500,
        "this server failed; its log names the kind of fault",
        kind="api_error",
        code="internal_error",
    )
