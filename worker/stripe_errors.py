"""Stripe's exceptions as ours, named by what may be done next.

Source: https://docs.stripe.com/error-low-level.
"""

from collections.abc import Mapping

import aiohttp
import stripe

from worker.errors import CallRefused, CallSystemic, CallTransient, CallUnknown, Refusal, WorkerError


def translate(error: stripe.StripeError) -> WorkerError:  # noqa: PLR0911 - one line for each family, read as a table
    """Stripe's exception as one of ours, by what may be done next.

    Stripe's own headers come first: `Idempotent-Replayed` tells a stored error from a fresh one, and asking again only
    repeats it; `Stripe-Should-Retry` says whether to ask again at all; `Stripe-Rate-Limited-Reason` tells its limiter
    from a payment that is locked.
    """
    if isinstance(error, stripe.APIConnectionError):
        return _translate_lost(error)
    status = error.http_status or 0
    headers: Mapping[str, str] = {name.lower(): value for name, value in (error.headers or {}).items()}
    code = getattr(error.error, "code", None) or error.code
    told = f"{status} {code or type(error).__name__} ({error.request_id or 'no request id'})"
    should_retry = headers.get("stripe-should-retry")
    if isinstance(error, stripe.RateLimitError):
        limit = headers.get("stripe-rate-limited-reason")
        return CallTransient(f"{told} {limit or ''}".strip(), reason="rate_limited" if limit else "lock_timeout")
    if isinstance(error, stripe.AuthenticationError | stripe.PermissionError):
        return CallSystemic(f"{told}: Stripe refuses our key or what it may do")
    if isinstance(error, stripe.IdempotencyError):
        return CallUnknown(f"{told}: key used with other parameters", reason="key_mismatch", may_ask_again=False)
    if status == 409:
        return CallTransient(told, reason="in_use")
    if isinstance(error, stripe.CardError | stripe.InvalidRequestError):
        if should_retry == "true":
            return CallTransient(f"{told}: Stripe says to try again", reason="try_again")
        return CallRefused(_refusal(error, code))
    if headers.get("idempotent-replayed") == "true":
        return CallUnknown(f"{told}: the first answer again", reason="stored_error", may_ask_again=False)
    if should_retry == "false":
        return CallUnknown(f"{told}: Stripe says not to try again", reason="stored_error", may_ask_again=False)
    return CallUnknown(told, reason="server_error")


def _translate_lost(error: stripe.APIConnectionError) -> WorkerError:
    """No answer. Where the connection was never made, nothing was sent and so nothing was done."""
    cause: BaseException | None = error
    while cause:
        if isinstance(cause, aiohttp.ClientConnectorError):
            return CallTransient("no connection to Stripe", reason="no_connection")
        cause = cause.__cause__ or cause.__context__
    return CallUnknown("the connection broke before the answer", reason="answer_lost")


def _refusal(error: stripe.StripeError, code: str | None) -> Refusal:
    body = error.error
    intent = getattr(body, "payment_intent", None)
    return Refusal(
        http_status=error.http_status or 0,
        code=code,
        decline_code=getattr(body, "decline_code", None),
        advice_code=getattr(body, "advice_code", None),
        message=str(getattr(body, "message", None) or "")[:500],
        payment_id=getattr(intent, "id", None),
        payment_status=getattr(intent, "status", None),
        livemode=getattr(intent, "livemode", None),
        request_id=error.request_id,
    )
