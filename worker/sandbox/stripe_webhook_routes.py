"""The part of the control surface that is about events and their delivery."""

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from worker.sandbox.stripe_core import SandboxCore

MAX_WAIT_S = 60.0

Given = dict[str, Any]
Route = Callable[[SandboxCore, Given], Awaitable[Any]]


async def show_events(core: SandboxCore, given: Given) -> Any:
    """All events of all accounts, oldest first, without their objects; those about one `object` if named."""
    about = given.pop("object", None)
    nothing_else(given)
    return {
        "events": [
            {
                "id": event.object_id,
                "type": event.type,
                "object": event.about,
                "account": event.scope.account,
                "created": event.created,
                "pending_webhooks": event.pending_webhooks,
                "request": event.cause._asdict(),
            }
            for event in core.world.events.everything()
            if about in {None, event.about}
        ]
    }


async def show_webhooks(core: SandboxCore, given: Given) -> Any:
    nothing_else(given)
    return {"webhooks": [endpoint.describe() for endpoint in core.world.webhooks.endpoints.values()]}


async def add_webhook(core: SandboxCore, given: Given) -> Any:
    """`url`, `secrets`, and any of enabled_events, api_version, account, livemode; or changes of an `endpoint`."""
    endpoint_id = given.pop("endpoint", None)
    if endpoint_id is not None:
        return core.world.webhooks.change(endpoint_id, **given).describe()
    return core.world.webhooks.add(given.pop("url"), given.pop("secrets"), **given).describe()


async def remove_webhook(core: SandboxCore, given: Given) -> Any:
    endpoint_id = given.pop("endpoint")
    nothing_else(given)
    core.world.webhooks.remove(endpoint_id)
    return {}


async def show_deliveries(core: SandboxCore, given: Given) -> Any:
    """Each attempt to deliver, oldest first, as far as the ring reaches."""
    nothing_else(given)
    return {"deliveries": [asdict(attempt) for attempt in core.world.webhooks.attempts]}


async def wait_for_deliveries(core: SandboxCore, given: Given) -> Any:
    """Until each delivery has been taken or given up, or `timeout_s` is over; `outstanding` says what is left."""
    timeout_s = min(float(given.pop("timeout_s")), MAX_WAIT_S)
    nothing_else(given)
    await core.world.webhooks.settled(timeout_s)
    return core.world.webhooks.stats()


async def resend(core: SandboxCore, given: Given) -> Any:
    """An `event` by its id, to one `endpoint` or all."""
    event_id, endpoint_id = given.pop("event"), given.pop("endpoint", None)
    nothing_else(given)
    event = core.world.events.find(event_id)
    if event is None:
        raise ValueError(f"no event {event_id}")
    return {"endpoints": core.world.webhooks.resend(event, endpoint_id)}


WEBHOOK_ROUTES: dict[tuple[str, str], Route] = {
    ("GET", "events"): show_events,
    ("GET", "webhooks"): show_webhooks,
    ("POST", "webhooks"): add_webhook,
    ("DELETE", "webhooks"): remove_webhook,
    ("GET", "deliveries"): show_deliveries,
    ("POST", "deliveries/settled"): wait_for_deliveries,
    ("POST", "deliveries/resend"): resend,
}


def nothing_else(given: Given) -> None:
    if given:
        raise ValueError(f"unknown arguments {sorted(given)}")
