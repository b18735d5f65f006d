"""Whether a webhook's body was signed by Stripe. Pure.

Source: https://docs.stripe.com/webhooks/signature. The SDK's own check takes times in the future and one secret only.
"""

import hashlib
import hmac
import re
from collections.abc import Sequence
from typing import Final

# More than any secret roll brings; what a stranger sends is not looked at for longer.
MOST_SIGNATURES: Final = 16
MOST_HEADER_CHARS: Final = 4096
_TIME: Final = re.compile(r"[0-9]{1,12}")


class SignatureRefused(ValueError):
    """The body is not Stripe's, or is too old or too new. `reason` is a word for metrics; nothing in it is a secret."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def check_signature(body: bytes, header: str, *, secrets: Sequence[str], now: float, tolerance_s: float) -> None:
    """Raises SignatureRefused: no_signature, stale, future, wrong_signature.

    header: of `Stripe-Signature`, "t=…,v1=…[,v1=…]". secrets: any of them will do, so that one is rolled without loss.
    now: seconds since the epoch. Takes as long whichever secret it is, and for a wrong signature too.
    """
    signed_at, signatures = _parts(header)
    if signed_at is None or not signatures:
        raise SignatureRefused("no_signature")
    signed = f"{signed_at}.".encode() + body
    is_known = False
    for secret in secrets:
        expected = hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest().encode()
        for signature in signatures:
            is_known |= hmac.compare_digest(expected, signature)
    if not is_known:
        raise SignatureRefused("wrong_signature")
    if now - int(signed_at) > tolerance_s:
        raise SignatureRefused("stale")
    if int(signed_at) - now > tolerance_s:
        raise SignatureRefused("future")


def _parts(header: str) -> tuple[str | None, list[bytes]]:
    """The time as written, and the signatures of the scheme that counts."""
    if len(header) > MOST_HEADER_CHARS:
        return None, []
    pairs = [part.partition("=")[::2] for part in header.split(",")]
    times = [value for name, value in pairs if name.strip() == "t"]
    signatures = [value.strip().encode("utf-8", "replace") for name, value in pairs if name.strip() == "v1"]
    if len(times) != 1 or not _TIME.fullmatch(times[0].strip()):
        return None, []
    return times[0].strip(), signatures[:MOST_SIGNATURES]
