"""Whatever is done to an intent, in whatever order, it moves only as Stripe's life cycle allows."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.sandbox.stripe_deeds import act
from worker.sandbox.stripe_errors import ApiError
from worker.sandbox.stripe_gate import PLATFORM
from worker.sandbox.stripe_intents import TOLD_AS
from worker.sandbox.stripe_post import Post
from worker.sandbox.stripe_store import SandboxClock, Scope
from worker.sandbox.stripe_world import World

SCOPE = Scope(PLATFORM, False)
OPEN = {
    "requires_payment_method",
    "requires_confirmation",
    "requires_action",
    "processing",
    "requires_capture",
    "succeeded",
    "canceled",
}
# https://docs.stripe.com/payments/paymentintents/lifecycle; staying where one is is always allowed.
MOVES = {
    "requires_payment_method": OPEN,
    "requires_confirmation": OPEN,
    "requires_action": OPEN,
    "processing": {"succeeded", "requires_capture", "requires_payment_method"},
    "requires_capture": {"succeeded", "canceled"},
    "succeeded": set(),
    "canceled": set(),
}
METHODS = st.sampled_from(
    [
        "pm_card_visa",
        "pm_card_chargeDeclined",
        "pm_card_threeDSecure2Required",
        "pm_card_threeDSecureRequiredChargeDeclined",
        "pm_usBankAccount_success",
        "pm_usBankAccount_noAccount",
    ]
)
CAPTURE = st.sampled_from(["automatic", "automatic_async", "manual"])
STEPS = st.one_of(
    st.tuples(
        st.just("confirm"),
        st.fixed_dictionaries({}, optional={"payment_method": METHODS, "off_session": st.booleans()}),
    ),
    st.tuples(
        st.just("update"),
        st.fixed_dictionaries(
            {}, optional={"payment_method": METHODS, "amount": st.integers(50, 900), "capture_method": CAPTURE}
        ),
    ),
    st.tuples(st.just("capture"), st.fixed_dictionaries({}, optional={"amount_to_capture": st.integers(1, 1000)})),
    st.tuples(st.just("cancel"), st.just({})),
    st.tuples(st.just("act"), st.sampled_from(["authenticate", "fail_authentication", "settle", "fail", "expire"])),
    st.tuples(st.just("act"), st.sampled_from(["pay", "settle_balance", "settle_refund", "fail_refund", "dispute"])),
    st.tuples(st.just("refund"), st.fixed_dictionaries({}, optional={"amount": st.integers(1, 600)})),
)


@settings(deadline=None)  # up to eight operations, each through JSON
@given(CAPTURE, st.lists(STEPS, max_size=8))
def test_an_intent_moves_only_as_its_life_cycle_allows(capture_method: str, steps: list[tuple[str, Any]]) -> None:
    world = World(ring=1, seed=0, post=Post())
    intents = world.intents
    never = {"enabled": True, "allow_redirects": "never"}
    start = {"amount": 500, "currency": "usd", "capture_method": capture_method, "automatic_payment_methods": never}
    intent_id, body = intents.create(SCOPE, start)
    before = json.loads(body)
    for name, details in steps:
        refusal = None
        try:
            if name == "act":
                act(world, intent_id, details)
            elif name == "refund":
                world.refunds.create(SCOPE, {"payment_intent": intent_id, **details})
            else:
                getattr(intents, name)(SCOPE, intent_id, details)
        except ApiError as error:
            refusal = error
        except ValueError:
            assert name == "act"
        after = json.loads(intents.retrieve(SCOPE, intent_id)[1])
        if refusal is not None:
            check_refusal(refusal, before, after)
        assert after["status"] == before["status"] or after["status"] in MOVES[before["status"]]
        if after["status"] != before["status"] and after["status"] != "requires_confirmation":
            told = [event for event in world.events.everything() if event.about == intent_id][-1]
            assert (told.type, json.loads(told.body)) == (TOLD_AS[after["status"]], after)
        check_fields(after)
        check_charges(world, after)
        before = after


def check_refusal(refusal: ApiError, before: dict[str, Any], after: dict[str, Any]) -> None:
    """A 402 has moved the intent and shows it as it is; any other refusal changed nothing."""
    if refusal.status == 402:
        assert refusal.error["payment_intent"] == after
        assert after["last_payment_error"]["code"] == refusal.code
    else:
        assert after == before


def check_fields(intent: dict[str, Any]) -> None:
    status = intent["status"]
    assert (intent["amount_received"] > 0) == (status == "succeeded")
    assert intent["amount_received"] <= intent["amount"]
    assert (intent["amount_capturable"] > 0) == (status == "requires_capture")
    assert (intent["next_action"] is not None) == (status == "requires_action")
    assert (intent["canceled_at"] is not None) == (status == "canceled")
    if status in {"requires_confirmation", "requires_action", "processing", "requires_capture", "succeeded"}:
        assert intent["payment_method"] is not None
    if status in {"processing", "requires_capture", "succeeded"}:
        assert intent["latest_charge"] is not None


def check_charges(world: World, intent: dict[str, Any]) -> None:
    """Only the last charge may hold money, exactly what the intent says, and never more is refunded than that."""

    def all_of(resource: str) -> list[dict[str, Any]]:
        return [json.loads(kept.body) for kept in world.objects[resource].of_intent(intent["id"])]

    charges, refunds = all_of("charges"), all_of("refunds")
    assert [charge["id"] for charge in charges][-1:] == [intent["latest_charge"]][: len(charges)]
    assert [charge["status"] for charge in charges[:-1]] == ["failed"] * len(charges[:-1])
    assert sum(charge["amount_captured"] for charge in charges) == intent["amount_received"]
    given_back = sum(refund["amount"] for refund in refunds if refund["status"] != "failed")
    for charge in charges[-1:]:
        assert charge["captured"] == (intent["status"] == "succeeded")
        assert charge["amount_refunded"] == given_back <= charge["amount_captured"]
        assert charge["refunded"] == (0 < given_back == charge["amount_captured"])


def test_the_clock_never_goes_back() -> None:
    clock = SandboxClock()
    with pytest.raises(ValueError, match="forward"):
        clock.advance(-1)
