"""What stands before every endpoint: whose key it is, and how many requests a second an endpoint takes.

Sources: https://docs.stripe.com/keys, https://docs.stripe.com/connect/authentication,
https://docs.stripe.com/rate-limits (per-endpoint limit; ids in a path share one endpoint).
"""

import base64
import binascii
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from worker.sandbox.stripe_errors import ApiError, forbidden, too_many_requests, unauthorized
from worker.sandbox.stripe_store import Scope

PLATFORM = "acct_sandbox"

_SECRET_KEY = re.compile(r"(?:sk|rk)_(test|live)_[A-Za-z0-9_]+")
_ACCOUNT = re.compile(r"acct_[A-Za-z0-9_]+")


@dataclass(slots=True)
class Keys:
    """All keys belong to one platform account, so that a rolled key sees the same objects.

    `restricted` maps a key to the endpoints it may use, as globs of `METHOD /path`, e.g. `GET /v1/payment_intents*`.
    """

    revoked: frozenset[str] = frozenset()
    restricted: dict[str, list[str]] = field(default_factory=dict)

    def admit(self, headers: Mapping[str, str], method: str, path: str) -> Scope:
        """Raises ApiError: 401 for no or no good key, 403 for a key that may not do this."""
        key = _key_in(headers.get("Authorization", ""))
        if key is None:
            raise unauthorized("You did not provide an API key. Use Bearer, or Basic with the key as the user name.")
        if key.startswith("pk_"):
            message = "This API call cannot be made with a publishable API key."
            raise unauthorized(message, code="secret_key_required")
        shown = key[:8] + "***"  # an error's text ends up in logs
        known = _SECRET_KEY.fullmatch(key)
        if known is None:
            raise unauthorized("Invalid API Key provided: " + (shown if key[:3] in {"sk_", "rk_"} else "***"))
        if key in self.revoked:
            raise unauthorized(f"Expired API Key provided: {shown}", code="api_key_expired")
        endpoints = self.restricted.get(key)
        if endpoints is not None and not any(fnmatchcase(f"{method} {path}", glob) for glob in endpoints):
            raise forbidden(f"The provided key '{shown}' does not have the required permissions for this endpoint.")
        context = headers.get("Stripe-Context", "").rpartition("/")[2]
        account = headers.get("Stripe-Account") or context or PLATFORM
        if _ACCOUNT.fullmatch(account) is None:
            message = f"The provided key '{shown}' does not have access to account '{account}'."
            raise forbidden(message, code="account_invalid")
        return Scope(account, known[1] == "live")


class RateLimiter:
    """A token bucket per account, mode and endpoint, of one second's worth; 0 means no limit. Real time."""

    def __init__(self, per_second: float = 0.0) -> None:
        self.per_second = per_second
        self._buckets: dict[tuple[Scope, str], tuple[float, float]] = {}

    def take(self, scope: Scope, endpoint: str) -> ApiError | None:
        """The refusal, if there is no token left. A refused request costs nothing."""
        if self.per_second <= 0:
            return None
        now = time.monotonic()
        full = max(1.0, self.per_second)
        tokens, since = self._buckets.get((scope, endpoint), (full, now))
        tokens = min(full, tokens + (now - since) * self.per_second)
        granted = tokens >= 1
        self._buckets[scope, endpoint] = (tokens - 1 if granted else tokens, now)
        return None if granted else too_many_requests()

    def refill(self, per_second: float) -> None:
        self.per_second = per_second
        self._buckets.clear()


def _key_in(authorization: str) -> str | None:
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip() or None
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[0] or None
        except (binascii.Error, UnicodeDecodeError):
            return None
    return None
