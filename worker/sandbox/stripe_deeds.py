"""What customers and banks do, without a request of the merchant: the deeds of the control surface.

Each takes an object's id and details of its own, raises ValueError if it does not fit what it is done to, and answers
the object as it is then.
"""

import json
from collections.abc import Callable
from typing import Any

from worker.sandbox.stripe_store import Json
from worker.sandbox.stripe_world import World

OF_INTENT = ("authenticate", "fail_authentication", "settle", "fail", "expire")


def act(world: World, object_id: str, deed: str, **details: Any) -> Json:
    """Raises ValueError, or TypeError for details that the deed does not have."""
    if deed in OF_INTENT:
        if details:
            raise TypeError(f"{deed} takes no {', '.join(details)}")
        done: Json = json.loads(world.intents.act(object_id, deed))
        return done
    if deed not in DEEDS:
        raise ValueError(f"unknown deed {deed}: there are {', '.join((*OF_INTENT, *DEEDS))}")
    return DEEDS[deed](world, object_id, **details)


def pay(world: World, object_id: str, payment_method: str = "pm_card_visa") -> Json:
    """The customer confirms the intent with the client secret."""
    done: Json = json.loads(world.intents.pay(object_id, payment_method))
    return done


def dispute(world: World, object_id: str, **details: Any) -> Json:
    """`reason`, `amount` (minor units, all if not given), `inquiry`."""
    return world.disputes.open(_latest(world, "charges", object_id), **details)


def update_dispute(world: World, object_id: str, status: str) -> Json:
    return world.disputes.update(_latest(world, "disputes", object_id), status)


def close_dispute(world: World, object_id: str, status: str) -> Json:
    return world.disputes.close(_latest(world, "disputes", object_id), status)


def settle_refund(world: World, object_id: str) -> Json:
    return world.refunds.settle(_latest(world, "refunds", object_id))


def fail_refund(world: World, object_id: str, **details: Any) -> Json:
    """`failure_reason`."""
    return world.refunds.fail(_latest(world, "refunds", object_id), **details)


def settle_balance(world: World, object_id: str) -> Json:
    return world.charges.settle(_latest(world, "charges", object_id))


DEEDS: dict[str, Callable[..., Json]] = {
    "pay": pay,
    "dispute": dispute,
    "update_dispute": update_dispute,
    "close_dispute": close_dispute,
    "settle_refund": settle_refund,
    "fail_refund": fail_refund,
    "settle_balance": settle_balance,
}


def _latest(world: World, resource: str, object_id: str) -> str:
    """The id itself, or of the payment's latest object of this kind."""
    if world.store.find(object_id) is None:
        return object_id
    found = world.objects[resource].of_intent(object_id)
    if not found:
        raise ValueError(f"{object_id} has no {resource}")
    return found[-1].object_id
