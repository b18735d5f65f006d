"""Stripe's error answers: the body, status and headers a client reads.

Sources: https://docs.stripe.com/api/errors, https://docs.stripe.com/error-codes,
https://docs.stripe.com/error-low-level, https://docs.stripe.com/rate-limits, and stripe-python's
`_api_requestor.py` (`specific_v1_api_error`), which picks the exception class from status and type.
"""

import json
from typing import Any

DOC_URL = "https://docs.stripe.com/error-codes/"


class ApiError(Exception):
    """An answer other than 200. Whether the idempotency layer keeps it depends on when it is raised, not on which."""

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers or {}
        # Stripe leaves out what is null in an error (stripe-python, _error_object.py).
        fields = {"code": code, "message": message, "param": param, "type": kind, **more}
        self.error = {name: value for name, value in fields.items() if value is not None}
        if code is not None:
            self.error["doc_url"] = DOC_URL + code.replace("_", "-")

    def body(self) -> bytes:
        return json.dumps({"error": self.error}, separators=(",", ":")).encode()


def invalid(message: str, *, code: str | None = None, param: str | None = None, **more: Any) -> ApiError:
    """400: the request as sent cannot be carried out."""
    return ApiError(400, "invalid_request_error", message, code=code, param=param, **more)


def missing(kind: str, object_id: str, *, param: str, status: int = 404) -> ApiError:
    """404 for the object in the path; Stripe answers 400 when a parameter names the missing object."""
    message = f"No such {kind}: '{object_id}'"
    return ApiError(status, "invalid_request_error", message, code="resource_missing", param=param)


def unrecognized_url(method: str, path: str) -> ApiError:
    return ApiError(404, "invalid_request_error", f"Unrecognized request URL ({method}: {path}).")


def unauthorized(message: str, *, code: str | None = None) -> ApiError:
    headers = {"WWW-Authenticate": 'Basic realm="Stripe"'}
    return ApiError(401, "invalid_request_error", message, code=code, headers=headers)


def forbidden(message: str, *, code: str | None = None) -> ApiError:
    return ApiError(403, "invalid_request_error", message, code=code)


def key_in_use() -> ApiError:
    """409: a request under the same key is still executing."""
    message = "There is currently another in-progress request using this Idempotent Key; try again in a moment."
    return ApiError(409, "invalid_request_error", message, code="idempotency_key_in_use")


def key_reused(message: str) -> ApiError:
    """400 without a code: the key belongs to another request."""
    return ApiError(400, "idempotency_error", message)


def too_many_requests() -> ApiError:
    """429 of the per-endpoint limiter, told apart from other 429s by its reason header."""
    message = "Too many requests reached this endpoint; slow down. The request was not carried out."
    headers = {"Stripe-Rate-Limited-Reason": "endpoint-rate"}
    return ApiError(429, "invalid_request_error", message, code="rate_limit", headers=headers)


def lock_timeout() -> ApiError:
    """429 without a limiter's reason: another request holds the object. Stripe invites the SDK to retry it."""
    message = "This object cannot be accessed right now because another request is holding it."
    headers = {"Stripe-Should-Retry": "true"}
    return ApiError(429, "invalid_request_error", message, code="lock_timeout", headers=headers)


def server_error() -> ApiError:
    """500: the outcome is unknown to the caller, and a retry under the same key only replays this answer."""
    message = "An unexpected error occurred on our side. The outcome of the request is unknown."
    return ApiError(500, "api_error", message, headers={"Stripe-Should-Retry": "false"})
