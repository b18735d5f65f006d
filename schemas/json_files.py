"""The contract as files, for those who read no Python: JSON Schema 2020-12 and an example of each message.

`python -m schemas.json_files` writes them beside this module; a test holds them and the models in step.
Source: https://json-schema.org/draft/2020-12.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode

from schemas import order_created, payment_failed, payment_intent_created
from schemas.envelope import CloudEvent
from schemas.order_created import OrderCreated
from schemas.payment_failed import PaymentFailed
from schemas.payment_intent_created import PaymentIntentCreated
from schemas.payment_reply import PaymentReply

FOLDER: Final = Path(__file__).parent

_ORDER_ID: Final = "order-1001"
_ORDER_EVENT_ID: Final = "0b8e5f2a-6c1d-4e0b-9a57-2f1f6d3c9e10"
_PAYMENT_ID: Final = "pi_3ExampleExampleExample00"
_TRACEPARENT: Final = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

_ORDER: Final[Mapping[str, Any]] = {
    "order_id": _ORDER_ID,
    "amount": "99.99",
    "currency": "usd",
    "receipt_email": "jenny.rosen@example.com",
    "metadata": {"basket": "b-77"},
}
_PAYMENT: Final[Mapping[str, Any]] = {
    "order_id": _ORDER_ID,
    "payment_id": _PAYMENT_ID,
    "status": "requires_payment_method",
    "amount": "99.99",
    "amount_minor": 9999,
    "currency": "usd",
    "livemode": False,
    "sequence": 1,
    "cause": _ORDER_EVENT_ID,
}
_FAILURE: Final[Mapping[str, Any]] = {
    "category": "declined",
    "code": "card_declined",
    "decline_code": "insufficient_funds",
    "message": "Your card has insufficient funds.",
    "may_retry": False,
}
_REPLY: Final[Mapping[str, Any]] = {
    "order_id": _ORDER_ID,
    "payment_id": _PAYMENT_ID,
    "status": "requires_payment_method",
    "client_secret": f"{_PAYMENT_ID}_secret_THIS_IS_NOT_A_SECRET",
}


class _AsOnTheWire(GenerateJsonSchema):
    """What we read may lack whatever has a default; what we write lacks only what is null by default."""

    def field_is_required(self, field: Any, total: bool) -> bool:
        """Whether every message of ours holds the field, or every message sent to us must."""
        if self.mode == "validation":
            return super().field_is_required(field, total)
        return "default" not in field["schema"] or field["schema"]["default"] is not None


def json_files() -> dict[str, str]:
    """{file name: text} of every schema and every example."""
    values: dict[str, Any] = {
        "order_created.schema.json": _schema(
            OrderCreated,
            urn=order_created.TYPE,
            description="An order service asks for a payment. In the binary form the body is `data` alone.",
            mode="validation",
        ),
        "payment_intent_created.schema.json": _schema(
            PaymentIntentCreated,
            urn=payment_intent_created.TYPE,
            description="Stripe has a PaymentIntent for the order.",
        ),
        "payment_failed.schema.json": _schema(
            PaymentFailed,
            urn=payment_failed.TYPE,
            description="Stripe has said no, and asking again would not help.",
        ),
        "payment_reply.schema.json": _schema(
            PaymentReply,
            urn="payment.reply",
            description="The private answer to an order event that set `reply_to`: a plain object, no CloudEvent.",
        ),
        "order_created.example.json": _envelope(
            order_created.TYPE, id=_ORDER_EVENT_ID, source="shop/orders", time="2026-01-31T12:00:00Z", data=_ORDER
        ),
        "order_created.binary.example.json": _ORDER,
        "payment_intent_created.example.json": _told(payment_intent_created.TYPE, data=_PAYMENT),
        "payment_failed.example.json": _told(payment_failed.TYPE, data={**_PAYMENT, "failure": _FAILURE}),
        "payment_reply.example.json": _REPLY,
    }
    return {name: json.dumps(value, indent=2, ensure_ascii=False) + "\n" for name, value in values.items()}


def write_json_files(folder: Path = FOLDER) -> None:
    """Write them all, over those that are there."""
    for name, text in json_files().items():
        (folder / name).write_text(text, encoding="utf-8")


def _schema(
    model: type[BaseModel], *, urn: str, description: str, mode: JsonSchemaMode = "serialization"
) -> dict[str, Any]:
    made = model.model_json_schema(schema_generator=_AsOnTheWire, mode=mode)
    if issubclass(model, CloudEvent):
        # The body tells a structured event by its specversion: without it the message is read as plain data.
        made["required"] = [name for name in made["properties"] if name in {*made["required"], "specversion", "type"}]
    head = {
        "$schema": _AsOnTheWire.schema_dialect,
        "$id": f"urn:payment-worker:{urn}",
        "title": urn,
        "description": description,
    }
    return {**head, **{name: part for name, part in made.items() if name not in head}}


def _told(kind: str, *, data: Mapping[str, Any]) -> dict[str, Any]:
    """An event of the worker's own."""
    return _envelope(
        kind,
        id=f"{_ORDER_ID}/payment/1",
        source="payment-worker",
        subject=_ORDER_ID,
        time="2026-01-31T12:00:01Z",
        data=data,
    )


def _envelope(kind: str, *, data: Mapping[str, Any], **attributes: str) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "type": kind,
        **attributes,
        "datacontenttype": "application/json",
        "traceparent": _TRACEPARENT,
        "data": data,
    }


if __name__ == "__main__":
    write_json_files()
