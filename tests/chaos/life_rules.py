"""What must have come of the commands and of a payment's life: the bus against Stripe's own record.

Written from the README's and the schemas' promises, as checker.py is. Nobody disputes in a run, and no refund fails.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tests.chaos.history import CANCEL, CAPTURE, REFUND, Command, History, Told, once, order_of

SUCCEEDED, AUTHORIZED, CANCELED = "payment.succeeded", "payment.authorized", "payment.canceled"
CANCEL_FAILED, CAPTURED, CAPTURE_FAILED = "payment.cancel_failed", "payment.captured", "payment.capture_failed"
REFUNDED, REFUND_FAILED, ATTEMPT_FAILED = "payment.refunded", "refund.failed", "payment.attempt_failed"
OUTCOMES = frozenset({"payment.intent_created", "payment.failed"})
# Told without a rule of its own: what it says beyond the state, Stripe's record does not show.
TOLD_BESIDE = frozenset({"payment.settled", "payment.processing", "payment.authorization_expiring"})
TOLD_OF_STATUS = {"succeeded": SUCCEEDED, "canceled": CANCELED, "requires_capture": AUTHORIZED}
VERBS = {"/cancel": CANCEL, "/capture": CAPTURE, "/refunds": REFUND}

AllTold = Mapping[str, Sequence[Told]]


def answers(command: Command, events: Sequence[Told]) -> set[str]:
    """The ids of the events that answer a command, among those of its order."""
    return {each.event_id for each in events if _is_answer(command, each)}


def _is_answer(command: Command, told: Told) -> bool:
    asked_by = told.data.get("request_id") == command.name
    refunded_by = told.type == REFUNDED and (told.data.get("refund") or {}).get("request_id") == command.name
    if command.kind == REFUND:
        return refunded_by or (told.type == REFUND_FAILED and asked_by)
    if command.kind == CAPTURE:
        return told.type in (CAPTURED, CAPTURE_FAILED) and asked_by
    # A payment is canceled once, and that answers all who asked for it.
    return told.type == CANCELED or (told.type == CANCEL_FAILED and asked_by) or refunded_by


def answered(history: History, told: AllTold) -> Iterator[str]:
    """I11: one answer to each command, or a dead letter; none to what nobody asked."""
    letters = Counter((letter.order_id, letter.command) for letter in history.letters if letter.command)
    for command in history.commands:
        ids = answers(command, told.get(command.order_id, []))
        dead = letters[command.order_id, command.name]
        what = f"{command.order_id}: {command.kind} {command.name}"
        if not ids and not dead:
            yield f"I11: {what}: no answer"
        if len(ids) > 1 or (ids and dead):
            yield f"I11: {what}: several answers ({', '.join([*sorted(ids), *['a dead letter'] * bool(dead)])})"
        if dead and history.faults_over:
            yield f"I11: {what}: a dead letter although the faults are over"
    asked = {(command.order_id, command.name) for command in history.commands}
    for order_id, events in told.items():
        for each in once(events):
            name = each.data.get("request_id") or (each.data.get("refund") or {}).get("request_id")
            if name is not None and (order_id, name) not in asked:
                yield f"I11: {order_id}: {each.event_id} answers {name}, which nobody asked"


def refunds(history: History, told: AllTold) -> Iterator[str]:
    """I12: the refunds at Stripe are those asked for, each once, and never more than was paid."""
    asked = {(command.order_id, command.name): command for command in history.commands if _may_refund(command)}
    made: Counter[tuple[str | None, str | None]] = Counter()
    for refund in history.refunds:
        name = (refund.get("metadata") or {}).get("request_id")
        request = order_of(refund), name
        made[request] += 1
        command = asked.get(request)  # type: ignore[arg-type]
        if command is None:
            yield f"I12: {request[0]}: refund {refund['id']} was not asked for ({name})"
        elif command.amount_minor not in (None, refund["amount"]):
            yield f"I12: {request[0]}: refund {refund['id']} is of {refund['amount']}, asked was {command.amount_minor}"
    for (order_id, name), count in made.items():
        if count > 1:
            yield f"I12: {order_id}: {count} refunds for {name}"
    for intent in history.intents:
        given, paid = _refunded(history, intent["id"]), _received(intent)
        if given > paid:
            yield f"I12: {order_of(intent)}: {given} refunded of {paid} paid"


def _may_refund(command: Command) -> bool:
    return command.kind == REFUND or (command.kind == CANCEL and command.refund_if_paid)


def _received(intent: Mapping[str, Any]) -> int:
    return int(intent.get("amount_received") or 0)


def _refunded(history: History, intent_id: str | None) -> int:
    return sum(refund["amount"] for refund in history.refunds if refund.get("payment_intent") == intent_id)


def deeds(history: History, told: AllTold) -> Iterator[str]:
    """I13: what was canceled or captured was asked to be, once, and under one key for each request."""
    asked = _times_asked(history)
    for intent in history.intents:
        order_id = order_of(intent)
        if intent["status"] == "canceled" and not asked[order_id, "/cancel"]:
            yield f"I13: {order_id}: {intent['id']} is canceled, which nobody asked"
        if _is_manual(intent) and _received(intent) and not asked[order_id, "/capture"]:
            yield f"I13: {order_id}: {intent['id']} is captured, which nobody asked"
    yield from _calls(history, asked)


def _calls(history: History, asked: Mapping[tuple[str | None, str], int]) -> Iterator[str]:
    keys: dict[tuple[str | None, str], set[str]] = defaultdict(set)
    # Under which a 500 is kept; who caused it may be gone, and only the next one is answered with it.
    spent: dict[tuple[str | None, str], set[str]] = defaultdict(set)
    captured: Counter[str | None] = Counter()
    for row in history.requests:
        verb = next((verb for verb in VERBS if row["method"] == "POST" and row["path"].endswith(verb)), None)
        if verb is None:
            continue
        deed, is_carried_out = (row["order_id"], verb), not row.get("replayed")
        keys[deed].add(row["idempotency_key"])
        if row["status"] == 500:
            spent[deed].add(row["idempotency_key"])
        captured[row["order_id"]] += verb == "/capture" and row["status"] == 200 and is_carried_out
    for (order_id, verb), used in keys.items():
        allowed = asked[order_id, verb] + len(spent[order_id, verb])
        if not asked[order_id, verb]:
            yield f"I13: {order_id}: POST {verb}, which nobody asked"
        elif len(used) > allowed and not history.keys_expire:
            yield f"I13: {order_id}: {len(used)} keys for {verb}, there is reason for {allowed}"
    for order_id, count in captured.items():
        if count > 1:
            yield f"I13: {order_id}: captured {count} times"


def _times_asked(history: History) -> Counter[tuple[str | None, str]]:
    """How many requests may lead to a call, by order and verb."""
    asked: Counter[tuple[str | None, str]] = Counter()
    for command in history.commands:
        asked.update((command.order_id, verb) for verb, kind in VERBS.items() if kind == command.kind)
        asked[command.order_id, "/refunds"] += command.kind == CANCEL and command.refund_if_paid
    return asked


def _is_manual(intent: Mapping[str, Any]) -> bool:
    return intent.get("capture_method") == "manual"


def truth(history: History, told: AllTold) -> Iterator[str]:
    """I14: nothing is told that Stripe's record contradicts, and the last that is told is how it stands there."""
    intents = {intent["id"]: intent for intent in history.intents}
    of_order = {order_of(intent): intent for intent in history.intents}
    commands = {(command.order_id, command.name): command for command in history.commands}
    for order_id, events in told.items():
        state = (0, 0)
        for each in once(events):
            intent = intents.get(str(each.data.get("payment_id")))
            command = commands.get((order_id, str(each.data.get("request_id"))))
            if each.type == CANCELED and intent is None and order_id in of_order:
                intent = of_order[order_id]
            if why := _contradiction(history, each, intent, command):
                yield f"I14: {order_id}: {each.event_id} contradicts Stripe: {why}"
            if "amount_received_minor" not in each.data:
                continue
            before, state = state, (each.data["amount_received_minor"], each.data["amount_refunded_minor"])
            if any(now < was for was, now in zip(before, state, strict=True)):
                yield f"I14: {order_id}: {each.event_id} tells {state} received and refunded, {before} was told before"
        if history.faults_over and events:
            yield from _last_state(history, order_id, once(events)[-1], intents)


def _last_state(history: History, order_id: str, last: Told, intents: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    intent = intents.get(str(last.data.get("payment_id")))
    if intent is None:
        return
    at_stripe = {
        "status": intent["status"],
        "amount_received_minor": _received(intent),
        "amount_refunded_minor": _refunded(history, intent["id"]),
    }
    for name, value in at_stripe.items():
        # The outcome alone tells no amounts that move.
        if last.data.get(name, value if last.type in OUTCOMES else None) != value:
            yield f"I14: {order_id}: last told is {name} {last.data.get(name)}, at Stripe it is {value}"


def _contradiction(
    history: History, told: Told, intent: Mapping[str, Any] | None, command: Command | None
) -> str | None:
    """Why an event cannot be true; None where it can."""
    if told.type in (CANCEL_FAILED, CAPTURE_FAILED, REFUND_FAILED):
        return _untrue_failure(history, told, intent, command)
    if told.type == REFUNDED:
        return _untrue_refund(history, told, intent)
    status, received = (intent["status"], _received(intent)) if intent else (None, 0)
    match told.type:
        case "payment.succeeded" if (status, told.data.get("amount_received_minor")) != ("succeeded", received):
            return f"it is {status}, {received} received"
        case "payment.authorized" if intent is None or not _is_manual(intent):
            return "nothing is authorized without being captured"
        case "payment.canceled" if intent is not None and told.data.get("payment_id") is None:
            return f"canceled before its order, and there is {intent['id']}"
        case "payment.canceled" if intent is not None and status != "canceled":
            return f"it is {status}"
        case "payment.captured":
            return _untrue_capture(told, intent, command)
        case "payment.attempt_failed" if intent is None or not intent.get("last_payment_error"):
            return "no attempt has failed"
        case type_ if type_ not in KNOWN:
            return "nothing of the kind has happened"
    return None


def _untrue_capture(told: Told, intent: Mapping[str, Any] | None, command: Command | None) -> str | None:
    status, received = (intent["status"], _received(intent)) if intent else (None, 0)
    if (status, told.data.get("captured_minor")) != ("succeeded", received):
        return f"it is {status}, {received} received"
    if command and command.amount_minor not in (None, received):
        return f"{received} received, asked was {command.amount_minor}"
    winner = intent["metadata"].get("capture_request_id") if intent else None
    return f"it was captured for {winner}" if command and command.name != winner else None


def _untrue_failure(
    history: History, told: Told, intent: Mapping[str, Any] | None, command: Command | None
) -> str | None:
    code = (told.data.get("failure") or {}).get("code")
    status, received = (intent["status"], _received(intent)) if intent else (None, 0)
    asked = command.amount_minor if command else None
    left = received - _refunded(history, intent["id"] if intent else None)
    match told.type:
        case "payment.cancel_failed" if status == "canceled" or (code == "already_paid" and status != "succeeded"):
            return f"{code}, and it is {status}"
        case "payment.capture_failed" if _untrue_capture_failure(intent, code, asked):
            return f"{code}, and it is {status}"
        case "refund.failed" if code == "over_refund" and (asked if asked is not None else 1) <= left:
            return f"{code}, and {left} are left"
        case "refund.failed" if code == "nothing_paid" and received and not _is_manual(intent or {}):
            return f"{code}, and {received} are received"
    return None


def _untrue_capture_failure(intent: Mapping[str, Any] | None, code: str | None, asked: int | None) -> bool:
    status = intent["status"] if intent else "canceled"
    if code == "over_capture":
        return intent is None or (asked or 0) <= intent["amount"]
    if status == "succeeded":  # another one was first, and that is what its loser is told
        return code != "already_captured"
    wanted = {"already_captured": "succeeded", "canceled": "canceled"}.get(str(code), status)
    return status != wanted or (status == "requires_capture" and intent is not None and _is_manual(intent))


def _untrue_refund(history: History, told: Told, intent: Mapping[str, Any] | None) -> str | None:
    said = told.data.get("refund") or {}
    refund = next((each for each in history.refunds if each["id"] == said.get("refund_id")), None)
    if refund is None or intent is None or refund.get("payment_intent") != intent["id"]:
        return f"there is no refund {said.get('refund_id')} of it"
    at_stripe = refund["amount"], refund["status"], (refund.get("metadata") or {}).get("request_id")
    got = said.get("amount_minor"), said.get("status"), said.get("request_id")
    if got != at_stripe:
        return f"told {got}, it is {at_stripe}"
    if told.data.get("fully_refunded") and _refunded(history, intent["id"]) != _received(intent):
        return "told as all of it, and it is not"
    return None


def complete(history: History, told: AllTold) -> Iterator[str]:
    """I15: what Stripe's record shows to have happened to a payment is told, once the faults are over."""
    yield from (f"I15: {what}" for what in untold(history, told) if history.faults_over)


def untold(history: History, told: AllTold) -> Iterator[str]:
    """What happened at Stripe to the payments that were told, and is not told itself."""
    for intent in history.intents:
        events = [each for each in told.get(str(order_of(intent)), []) if each.data.get("payment_id") == intent["id"]]
        wanted = TOLD_OF_STATUS.get(intent["status"])
        if events and wanted and not any(each.type == wanted for each in events):
            yield f"{order_of(intent)}: {intent['id']} is {intent['status']}, and {wanted} was not told"
    for refund in history.refunds:
        events = told.get(str(order_of(refund)), [])
        ids = {(each.data.get("refund") or {}).get("refund_id") for each in events if each.type == REFUNDED}
        if events and refund["status"] == "succeeded" and refund["id"] not in ids:
            yield f"{order_of(refund)}: refund {refund['id']} was not told"


def sequences(history: History, told: AllTold) -> Iterator[str]:
    """I16: the sequence grows by event, for each payment; one that is left out would be an event that is lost."""
    for order_id, events in told.items():
        distinct = once(events)
        got = [each.data.get("sequence") for each in distinct]
        if len(set(got)) < len(got):
            yield f"I16: {order_id}: the same sequence for two events ({', '.join(map(str, got))})"
        elif history.faults_over and got != list(range(1, len(got) + 1)):
            yield f"I16: {order_id}: a sequence is left out ({', '.join(map(str, got))})"
        facts = Counter(each.type for each in distinct)
        for type_ in (SUCCEEDED, CANCELED, AUTHORIZED, CAPTURED):
            if facts[type_] > 1:
                yield f"I16: {order_id}: {type_} under {facts[type_]} event ids"


KNOWN = OUTCOMES | TOLD_BESIDE | {SUCCEEDED, AUTHORIZED, CANCELED, CANCEL_FAILED, CAPTURED, CAPTURE_FAILED}
KNOWN |= {REFUNDED, REFUND_FAILED, ATTEMPT_FAILED}
RULES = (answered, refunds, deeds, truth, complete, sequences)
