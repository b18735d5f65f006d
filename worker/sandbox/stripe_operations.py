"""Which part of the world answers which operation."""

from worker.sandbox.stripe_params import Params
from worker.sandbox.stripe_queries import list_events, list_intents, list_objects, search_intents
from worker.sandbox.stripe_request import Call
from worker.sandbox.stripe_settings import Settings
from worker.sandbox.stripe_store import Scope
from worker.sandbox.stripe_world import World

Result = tuple[str | None, bytes]


def operate(world: World, settings: Settings, scope: Scope, call: Call, params: Params) -> Result:
    """The id of the object it is about, if it is one, and the answer. Raises ApiError."""
    resource, _, action = (call.operation or "").rpartition(".")
    object_id = call.object_id or ""
    if action in {"list", "search"}:
        return None, _page(world, settings, scope, call.operation or "", params)
    if resource == "events":
        return world.events.retrieve(scope, object_id, api_version=settings.api_version)
    if action == "retrieve":
        shelf = world.objects[resource] if resource else world.intents
        return shelf.retrieve(scope, object_id)
    if action == "create":
        return (world.refunds if resource else world.intents).create(scope, params)
    change = {
        "refunds.update": world.refunds.update,
        "update": world.intents.update,
        "confirm": world.intents.confirm,
        "capture": world.intents.capture,
        "cancel": world.intents.cancel,
    }[call.operation or ""]
    return change(scope, object_id, params)


def _page(world: World, settings: Settings, scope: Scope, operation: str, params: Params) -> bytes:
    match operation:
        case "list":
            return list_intents(world.store, scope, params)
        case "search":
            return search_intents(world.store, world.clock, scope, params, lag_s=settings.search_lag_s)
        case "events.list":
            return list_events(world.events, scope, params, api_version=settings.api_version)
    resource = operation.partition(".")[0]
    return list_objects(world.objects[resource], scope, params, url=f"/v1/{resource}")
