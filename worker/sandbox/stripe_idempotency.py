"""The idempotency layer of Stripe's v1 API.

Sources: https://docs.stripe.com/api/idempotent_requests and https://docs.stripe.com/error-low-level.
Facts kept: the first answer under a key, status and body, is kept once its endpoint began to execute, whether it
succeeded or failed, a 500 included, and is answered again to the same request; another request under the key is
refused; a request while the first is executing is refused with 409 and nothing is kept of it; keys may be pruned when
24 hours old, and a pruned key is a new one. Keys belong to an account and mode.

What Stripe leaves open is decided here: a request that differs is refused even while the first is in flight; keys are
pruned exactly at the end of their life; headers take no part in the comparison.
"""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from operator import itemgetter
from typing import NamedTuple

from worker.sandbox.stripe_errors import ApiError, invalid, key_in_use, key_reused
from worker.sandbox.stripe_form import Pairs
from worker.sandbox.stripe_store import Scope

KEY_LIFE_S = 24 * 3600.0
MAX_KEY_LENGTH = 255


class Answer(NamedTuple):
    status: int
    body: bytes
    headers: dict[str, str] | None = None
    object_id: str | None = None
    code: str | None = None


@dataclass(slots=True, eq=False)
class Entry:
    slot: tuple[Scope, str]
    first_used: float
    path: str
    fingerprint: bytes
    answer: Answer | None = None  # None while in flight


def fingerprint(pairs: Pairs) -> bytes:
    """The same for the same parameters in any order. 128 bits, for 100,000 keys are kept."""
    return blake2b(repr(sorted(pairs, key=itemgetter(0))).encode(), digest_size=16).digest()


class IdempotencyKeys:
    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._entries: dict[tuple[Scope, str], Entry] = {}
        self.life_s = KEY_LIFE_S

    def recall(self, scope: Scope, key: str, path: str, pairs: Pairs) -> Answer | None:
        """The kept answer to this very request, or None if the key is free. Raises ApiError if it is not."""
        if len(key) > MAX_KEY_LENGTH:
            raise invalid(f"Idempotency keys can have up to {MAX_KEY_LENGTH} characters.")
        entry = self._entries.get((scope, key))
        if entry is None:
            return None
        if entry.answer is not None and self._now() - entry.first_used >= self.life_s:
            del self._entries[scope, key]
            return None
        refusal = _mismatch(entry, key, path, pairs)
        if refusal is not None:
            raise refusal
        if entry.answer is None:
            raise key_in_use()
        return entry.answer

    def begin(self, scope: Scope, key: str, path: str, pairs: Pairs) -> Entry:
        """From here on the endpoint executes: set the entry's answer, or forget it if it never did."""
        entry = self._entries[scope, key] = Entry((scope, key), self._now(), path, fingerprint(pairs))
        return entry

    def forget(self, entry: Entry) -> None:
        self._entries.pop(entry.slot, None)

    def __len__(self) -> int:
        return len(self._entries)


def _mismatch(entry: Entry, key: str, path: str, pairs: Pairs) -> ApiError | None:
    if entry.path != path:
        return key_reused(
            "Keys for idempotent requests can only be used for the same endpoint they were first used for "
            f"('{path}' vs '{entry.path}'). Try using a key other than '{key}' if you meant to execute a different "
            "request."
        )
    if entry.fingerprint != fingerprint(pairs):
        return key_reused(
            "Keys for idempotent requests can only be used with the same parameters they were first used with. "
            f"Try using a key other than '{key}' if you meant to execute a different request."
        )
    return None
