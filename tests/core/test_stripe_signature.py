"""Who is believed: a body that Stripe signed with one of our secrets, not long ago and not in the future."""

from collections.abc import Sequence
from typing import Any

import pytest
import stripe
from hypothesis import given
from hypothesis import strategies as st

from tests.properties.strategies import tries
from tests.stripe_story import signed
from worker.stripe_signature import SignatureRefused, check_signature

NOW = 1_770_000_000
OLD, NEW = "whsec_old_secret", "whsec_new_secret"
BODY = b'{"id": "evt_1"}'


def check(header: str, *, body: bytes = BODY, secrets: Sequence[str] = (NEW,), now: float = NOW) -> str | None:
    """The reason of the refusal, None for none."""
    try:
        check_signature(body, header, secrets=secrets, now=now, tolerance_s=300)
    except SignatureRefused as refused:
        return refused.reason
    return None


def test_what_the_sdk_signs_is_believed() -> None:
    header = stripe.WebhookSignature.generate_signature_header(BODY.decode(), NEW, timestamp=NOW)
    assert check(header) is None
    assert header == signed(BODY, NEW, at=NOW)


@pytest.mark.parametrize("secrets", [(NEW, OLD), (OLD, NEW)])
@pytest.mark.parametrize("by", [(NEW,), (OLD,), (OLD, NEW), ("whsec_foreign1", NEW)])
def test_while_a_secret_is_rolled_either_will_do(secrets: tuple[str, ...], by: tuple[str, ...]) -> None:
    assert check(signed(BODY, *by, at=NOW), secrets=secrets) is None


@pytest.mark.parametrize(("at", "reason"), [(-300, None), (300, None), (-301, "stale"), (301, "future")])
def test_a_time_is_tolerated_both_ways(at: int, reason: str | None) -> None:
    assert check(signed(BODY, NEW, at=NOW + at)) == reason


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("", "no_signature"),
        ("t=1770000000", "no_signature"),
        (signed(BODY, NEW, at=NOW).replace("v1=", "v0="), "no_signature"),
        (signed(BODY, NEW, at=NOW).replace("t=", "t=+"), "no_signature"),
        (signed(BODY, NEW, at=NOW) + f",t={NOW}", "no_signature"),
        (signed(BODY, NEW, at=NOW) + "," + "x" * 5000, "no_signature"),
        (signed(BODY, OLD, at=NOW), "wrong_signature"),
        (signed(BODY + b" ", NEW, at=NOW), "wrong_signature"),
        (signed(BODY, NEW, at=NOW - 1).replace(str(NOW - 1), str(NOW)), "wrong_signature"),
        (f"t={NOW},v1=ü", "wrong_signature"),
        (f"t={NOW},v1=", "wrong_signature"),
    ],
)
def test_what_is_not_signed_so_is_refused(header: str, reason: str) -> None:
    assert check(header) == reason


@tries(300)
@given(st.binary(max_size=200), st.text(max_size=200))
def test_nothing_else_is_believed_and_nothing_raises_anything_else(body: bytes, header: str) -> None:
    assert check(header, body=body) in ("no_signature", "wrong_signature")


@tries(200)
@given(st.binary(max_size=100), st.data())
def test_no_bit_of_a_signed_body_or_its_time_may_change(body: bytes, data: Any) -> None:
    whole = bytearray(body or b"x")
    header = signed(bytes(whole), NEW, at=NOW)
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert check(header, body=bytes(whole)) == "wrong_signature"
