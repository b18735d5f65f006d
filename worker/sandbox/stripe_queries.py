"""Listing what is kept, and searching PaymentIntents.

Listing reads its own writes (https://docs.stripe.com/api/payment_intents/list, https://docs.stripe.com/api/pagination).
Searching does not: an object, or a change to it, is found only once indexed
(https://docs.stripe.com/search: normally within a minute, later during outages; not for read-after-write).
"""

import re
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from itertools import islice
from operator import attrgetter

from worker.sandbox.stripe_errors import ApiError, invalid, missing
from worker.sandbox.stripe_events import Events
from worker.sandbox.stripe_objects import Objects
from worker.sandbox.stripe_params import Params
from worker.sandbox.stripe_store import IntentStore, K, KeptIntent, SandboxClock, Scope, Shelf, Version

DEFAULT_PAGE_SIZE = 10
SEARCH_FIELDS = ("status", "customer", "currency")

_CLAUSE = re.compile(
    r"""\s*(?P<not>-)?(?P<field>[a-z_]+)(?:\[(?P<quote>['"])(?P<key>(?:\\.|(?!(?P=quote))[^\\])*)(?P=quote)\])?"""
    r"""\s*:\s*(?P<mark>['"])(?P<value>(?:\\.|(?!(?P=mark))[^\\])*)(?P=mark)\s*""",
)
_AND = re.compile(r"(?:and|AND)\s+")

Clause = tuple[bool, str, str | None, str]


def list_kept(
    shelf: Shelf[K],
    scope: Scope,
    params: Params,
    *,
    url: str,
    kind: str,
    where: Callable[[K], bool] = lambda _: True,
    render: Callable[[K], bytes] = attrgetter("body"),
) -> bytes:
    """A page of one kind of object, newest first, within `created` and `where`. Raises ApiError."""
    if "starting_after" in params and "ending_before" in params:
        message = "You may only specify one of these parameters: ending_before, starting_after."
        raise invalid(message, code="parameters_exclusive")
    size = params.get("limit", DEFAULT_PAGE_SIZE)
    before = "ending_before" in params
    if before:
        candidates = shelf.newer_than(scope, _cursor(shelf, scope, params, "ending_before", kind))
    elif "starting_after" in params:
        candidates = shelf.newest_first(scope, after=_cursor(shelf, scope, params, "starting_after", kind))
    else:
        candidates = shelf.newest_first(scope)
    created = params.get("created", {})
    fitting = (kept for kept in candidates if _is_within(kept.created, created) and where(kept))
    page = list(islice(fitting, size + 1))
    shown = page[:size]
    bodies = [render(kept) for kept in (reversed(shown) if before else shown)]
    return _page(b'{"object":"list"', url, bodies, len(page) > size)


def list_intents(store: IntentStore, scope: Scope, params: Params) -> bytes:
    customer = params.get("customer")
    return list_kept(
        store,
        scope,
        params,
        url="/v1/payment_intents",
        kind="payment_intent",
        where=lambda kept: customer is None or kept.latest.customer == customer,
    )


def list_objects(objects: Objects, scope: Scope, params: Params, *, url: str) -> bytes:
    """Charges, refunds or disputes, of one payment where it is named."""
    intent_id, charge_id = params.get("payment_intent"), params.get("charge")
    return list_kept(
        objects,
        scope,
        params,
        url=url,
        kind=objects.kind,
        where=lambda kept: (
            kept.intent_id == (intent_id or kept.intent_id) and kept.charge_id == (charge_id or kept.charge_id)
        ),
    )


def list_events(events: Events, scope: Scope, params: Params, *, api_version: str) -> bytes:
    """Those of the last 30 days. `delivery_success=false` are those that some endpoint has not taken."""
    if "type" in params and "types" in params:
        raise invalid("You may only specify one of these parameters: type, types.", code="parameters_exclusive")
    types = params.get("types") or ([params["type"]] if "type" in params else ["*"])
    success = params.get("delivery_success")
    events.forget_old(scope)
    return list_kept(
        events,
        scope,
        params,
        url="/v1/events",
        kind="event",
        where=lambda event: (
            any(fnmatchcase(event.type, glob) for glob in types) and success in {None, event.pending_webhooks == 0}
        ),
        render=lambda event: event.render(api_version),
    )


def search_intents(store: IntentStore, clock: SandboxClock, scope: Scope, params: Params, *, lag_s: float) -> bytes:
    """Newest first, as indexed `lag_s` ago; what is found is answered as it is now. Raises ApiError."""
    clauses = parse_query(params["query"])
    size = params.get("limit", DEFAULT_PAGE_SIZE)
    skip = _offset(params.get("page"))
    horizon = clock.now() - lag_s
    found = (kept for kept in _candidates(store, scope, clauses) if _matches(kept, clauses, horizon))
    page = list(islice(found, skip, skip + size + 1))
    more = len(page) > size
    head = b'{"object":"search_result","next_page":' + (b'"%d"' % (skip + size) if more else b"null")
    return _page(head, "/v1/payment_intents/search", [kept.body for kept in page[:size]], more)


def parse_query(query: str) -> list[Clause]:
    """`metadata['order_id']:'7' AND status:'succeeded'` as clauses that must all hold; `-` negates one.

    Only exact matches joined by AND, on metadata, status, customer and currency: what a worker that looks for its own
    object uses. Anything else is refused rather than misread. Raises ApiError.
    """
    clauses: list[Clause] = []
    at = 0
    while at < len(query):
        clause = _CLAUSE.match(query, at)
        if clause is None:
            raise _unreadable(query)
        field, key = clause["field"], clause["key"]
        if (field == "metadata") != (key is not None) or field not in {"metadata", *SEARCH_FIELDS}:
            raise _unreadable(query)
        clauses.append((clause["not"] is not None, field, key and _unescape(key), _unescape(clause["value"])))
        at = clause.end()
        if at < len(query):
            joint = _AND.match(query, at)
            if joint is None or joint.end() == len(query):
                raise _unreadable(query)
            at = joint.end()
    if not clauses:
        raise _unreadable(query)
    return clauses


def _candidates(store: IntentStore, scope: Scope, clauses: list[Clause]) -> Iterable[KeptIntent]:
    """By the order's id where one is asked for: a reconciling worker's query must not read 100,000 intents."""
    for negated, field, key, value in clauses:
        if field == "metadata" and key == "order_id" and not negated:
            return [kept for kept in reversed(store.of_order(value)) if kept.scope == scope]
    return store.newest_first(scope)


def _matches(kept: KeptIntent, clauses: list[Clause], horizon: float) -> bool:
    indexed = next((version for version in reversed(kept.versions) if version.since <= horizon), None)
    return indexed is not None and all(_holds(indexed, clause) for clause in clauses)


def _holds(version: Version, clause: Clause) -> bool:
    negated, field, key, value = clause
    actual = version.metadata.get(key or "") if field == "metadata" else getattr(version, field)
    return (actual == value) != negated


def _is_within(moment: int, span: dict[str, int]) -> bool:
    return (
        moment >= span.get("gte", moment)
        and moment <= span.get("lte", moment)
        and ("gt" not in span or moment > span["gt"])
        and ("lt" not in span or moment < span["lt"])
    )


def _cursor(shelf: Shelf[K], scope: Scope, params: Params, name: str, kind: str) -> K:
    kept = shelf.get(scope, params[name])
    if kept is None:
        raise missing(kind, params[name], param=name, status=400)
    return kept


def _page(head: bytes, url: str, bodies: list[bytes], more: bool) -> bytes:
    has_more = b"true" if more else b"false"
    return head + b',"url":"' + url.encode() + b'","has_more":' + has_more + b',"data":[' + b",".join(bodies) + b"]}"


def _offset(page: str | None) -> int:
    if page is None:
        return 0
    if not (page.isascii() and page.isdigit()):
        raise invalid("Invalid page token.", param="page")
    return int(page)


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


def _unreadable(query: str) -> ApiError:
    return invalid(f"We were unable to parse your search query: {query}", param="query")
