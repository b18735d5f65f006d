"""What of the sandbox may be changed while it runs."""

from dataclasses import dataclass, field, fields, replace
from typing import Any

from worker.sandbox.stripe_idempotency import KEY_LIFE_S
from worker.sandbox.stripe_request import API_VERSION

HOUR_S = 3600.0
RANGES = ("latency_s", "webhook_delay_s")
NOT_NEGATIVE = ("rate_limit", "key_life_s", "search_lag_s", "webhook_retry_s", "webhook_timeout_s")
LAGS = ("settlement_lag_s", "refund_lag_s")
CHANCES = ("webhook_duplicates", "event_twins")
COUNTS = ("webhook_tries", "webhook_shuffle", "webhook_concurrency")
SWITCHES = ("events", "webhook_paused")


@dataclass(frozen=True, slots=True)
class Settings:
    """Times in seconds of the sandbox clock, except latency and webhook_timeout_s: real seconds."""

    latency_s: tuple[float, float] = (0.0, 0.0)
    rate_limit: float = 0.0  # requests a second per endpoint; 0 is none, Stripe's default is 25
    key_life_s: float = KEY_LIFE_S
    search_lag_s: float = 0.0
    revoked_keys: frozenset[str] = frozenset()
    restricted_keys: dict[str, list[str]] = field(default_factory=dict)
    settlement_lag_s: float | None = HOUR_S  # from capture to the balance transaction; None is never by itself
    refund_lag_s: float | None = HOUR_S  # until a pending refund succeeds, or one bound to fail fails; None as above
    events: bool = True  # False: nothing is kept of events, and nothing delivered
    api_version: str = API_VERSION  # of events, where an endpoint names none of its own
    event_twins: float = 0.0  # chance that one change is told by two events of different ids
    webhook_delay_s: tuple[float, float] = (0.0, 0.0)
    webhook_duplicates: float = 0.0  # chance that an event is delivered twice
    webhook_shuffle: int = 1  # so many deliveries are gathered, then sent in an order of the dice
    webhook_concurrency: int = 16  # deliveries under way at once; 1 keeps their order
    webhook_tries: int = 13  # with 60 s, doubled each time: the last one after almost three days
    webhook_retry_s: float = 60.0  # after the first failure; doubled after each
    webhook_timeout_s: float = 10.0
    webhook_paused: bool = False  # deliveries wait, and none is lost

    def changed(self, given: dict[str, Any]) -> "Settings":
        """Raises ValueError for an unknown name or a value of no use."""
        known = {item.name for item in fields(self)}
        if not given.keys() <= known:
            raise ValueError(f"unknown settings {sorted(given.keys() - known)}: there are {sorted(known)}")
        new = {name: _read(name, value) for name, value in given.items()}
        return replace(self, **new)

    def public(self) -> dict[str, Any]:
        """As JSON, without any API key: those are only counted."""
        shown = {item.name: getattr(self, item.name) for item in fields(self)}
        return shown | {"revoked_keys": len(self.revoked_keys), "restricted_keys": len(self.restricted_keys)}


def _read(name: str, value: Any) -> Any:
    if name in RANGES:
        return _range(name, value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if name in NOT_NEGATIVE and not (number and value >= 0):
        raise ValueError(f"{name} must be a number not below 0")
    if name in LAGS and value is not None and not (number and value >= 0):
        raise ValueError(f"{name} must be a number not below 0, or null for never")
    if name in CHANCES and not (number and 0 <= value <= 1):
        raise ValueError(f"{name} must be a chance from 0 to 1")
    if name in COUNTS and not (number and isinstance(value, int) and value >= 1):
        raise ValueError(f"{name} must be a whole number of at least 1")
    if name in SWITCHES and not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false")
    if name == "api_version" and not isinstance(value, str):
        raise ValueError("api_version must be a text")
    return frozenset(value) if name == "revoked_keys" else value


def _range(name: str, value: Any) -> tuple[float, float]:
    low, high = value if isinstance(value, list | tuple) else (value, value)
    if not 0 <= float(low) <= float(high):
        raise ValueError(f"{name} is a number of seconds, or a range [from, to]")
    return float(low), float(high)
