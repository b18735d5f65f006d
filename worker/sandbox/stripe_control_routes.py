"""The control surface under `/_sandbox/`: how tests and demo set the sandbox up and look into it.

JSON in, JSON out; 400 `{"error": …}` for what cannot be done. No key is asked for: it listens on loopback. Nothing
it shows holds an API key or a client_secret.
"""

import json
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from worker.sandbox.stripe_core import SandboxCore
from worker.sandbox.stripe_deeds import act as act_on
from worker.sandbox.stripe_record import FILTERS
from worker.sandbox.stripe_store import Kept
from worker.sandbox.stripe_webhook_routes import MAX_WAIT_S, WEBHOOK_ROUTES, Given, Route, nothing_else

PAGE = 1000


def add_control_routes(app: web.Application, sandbox: SandboxCore) -> None:
    """GET takes its arguments from the query, the others from a JSON body."""
    for (method, name), route in ROUTES.items():
        app.router.add_route(method, f"/_sandbox/{name}", _handler(sandbox, route))


async def show_record(core: SandboxCore, given: Given) -> Any:
    """Rows numbered after `since`, filtered by any column; with `wait_s`, wait until there is at least `want` of them.

    `next` is the `since` of the following page; `lost` says how many rows asked for the ring no longer has.
    """
    since, limit = int(given.pop("since", 0)), int(given.pop("limit", PAGE))
    want, wait_s = int(given.pop("want", 1)), min(float(given.pop("wait_s", 0)), MAX_WAIT_S)
    if not given.keys() <= set(FILTERS):
        raise ValueError(f"unknown filters {sorted(given.keys() - set(FILTERS))}: there are {sorted(FILTERS)}")
    record = core.world.record
    if wait_s > 0:
        await record.wait_for(want, since=since, where=given, timeout_s=wait_s)
    rows = record.select(since=since, limit=limit, where=given)
    oldest = record.rows[0].seq if record.rows else 1
    return {
        "rows": [row.as_dict() for row in rows],
        "next": rows[-1].seq if len(rows) == limit else record.received,
        "lost": max(0, oldest - since - 1),
    }


async def show_intents(core: SandboxCore, given: Given) -> Any:
    """All intents of all accounts, oldest first, or those of one `order_id`; `skip` and `limit` page."""
    skip, limit = int(given.pop("skip", 0)), int(given.pop("limit", PAGE))
    order_id = given.pop("order_id", None)
    nothing_else(given)
    store = core.world.store
    kept = list(store.everything()) if order_id is None else store.of_order(order_id)
    return {"intents": [_shown(one) for one in kept[skip : skip + limit]], "total": len(kept)}


async def show_objects(core: SandboxCore, given: Given) -> Any:
    """All of one `resource` (charges, refunds, disputes, balance_transactions), of one `intent` if named."""
    resource, intent_id = given.pop("resource"), given.pop("intent", None)
    nothing_else(given)
    if resource not in core.world.objects:
        raise ValueError(f"unknown resource {resource}: there are {', '.join(core.world.objects)}")
    objects = core.world.objects[resource]
    kept = objects.everything() if intent_id is None else objects.of_intent(intent_id)
    return {"objects": [_shown(one) for one in kept]}


async def show_stats(core: SandboxCore, given: Given) -> Any:
    per_order = given.pop("per_order", "false") == "true"
    nothing_else(given)
    return core.stats(per_order=per_order)


async def show_faults(core: SandboxCore, given: Given) -> Any:
    nothing_else(given)
    return {"faults": [fault.describe() for fault in core.world.faults.faults]}


async def add_faults(core: SandboxCore, given: Given) -> Any:
    """One fault, or `{"faults": [...]}`."""
    several = given.get("faults", [given])
    return {"faults": [core.world.faults.add(fault).describe() for fault in several]}


async def clear_faults(core: SandboxCore, given: Given) -> Any:
    """Forget the plan and let go what hangs."""
    nothing_else(given)
    core.world.faults.clear()
    core.release()
    return {}


async def release(core: SandboxCore, given: Given) -> Any:
    """Let go what hangs; the plan stays."""
    nothing_else(given)
    core.release()
    return {}


async def move_clock(core: SandboxCore, given: Given) -> Any:
    seconds = float(given.pop("advance_s"))
    nothing_else(given)
    return {"now": core.world.clock.advance(seconds)}


async def change_settings(core: SandboxCore, given: Given) -> Any:
    return core.change_settings(**given).public()


async def act(core: SandboxCore, given: Given) -> Any:
    """What the customer or the bank does: `{"object": "pi_…", "deed": "authenticate"}`, and details of the deed."""
    object_id, deed = given.pop("object"), given.pop("deed")
    return _without_secret(act_on(core.world, object_id, deed, **given))


async def reset(core: SandboxCore, given: Given) -> Any:
    nothing_else(given)
    core.reset()
    return {}


ROUTES: dict[tuple[str, str], Route] = {
    ("GET", "record"): show_record,
    ("GET", "intents"): show_intents,
    ("GET", "objects"): show_objects,
    ("GET", "stats"): show_stats,
    ("GET", "faults"): show_faults,
    ("POST", "faults"): add_faults,
    ("DELETE", "faults"): clear_faults,
    ("POST", "release"): release,
    ("POST", "clock"): move_clock,
    ("POST", "settings"): change_settings,
    ("POST", "act"): act,
    ("POST", "reset"): reset,
    **WEBHOOK_ROUTES,
}


def _handler(sandbox: SandboxCore, route: Route) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handle(request: web.Request) -> web.Response:
        try:
            given = dict(request.query) if request.method == "GET" else await _body(request)
            return web.json_response(await route(sandbox, given))
        except KeyError as error:
            return web.json_response({"error": f"missing: {error.args[0]}"}, status=400)
        except (ValueError, TypeError) as error:
            return web.json_response({"error": str(error)}, status=400)

    return handle


async def _body(request: web.Request) -> Given:
    text = await request.text()
    given = json.loads(text) if text else {}
    if not isinstance(given, dict):
        raise TypeError("the body must be a JSON object")
    return given


def _shown(kept: Kept) -> dict[str, Any]:
    return {**_without_secret(json.loads(kept.body)), "account": kept.scope.account}


def _without_secret(shown: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in shown.items() if name != "client_secret"}
