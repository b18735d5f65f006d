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

from schemas.commands import CaptureRequested, OrderCancelled, RefundRequested
from schemas.envelope import CloudEvent
from schemas.examples import ORDER, REPLY, examples
from schemas.order_created import OrderCreated
from schemas.payment_events import EVENT_MODELS
from schemas.payment_reply import PaymentReply

FOLDER: Final = Path(__file__).parent

_COMING_IN: Final[Mapping[str, type[BaseModel]]] = {
    "order.created": OrderCreated,
    "order.cancelled": OrderCancelled,
    "payment.capture_requested": CaptureRequested,
    "refund.requested": RefundRequested,
}
_GOING_OUT: Final[Mapping[str, type[BaseModel]]] = {**EVENT_MODELS, "payment.reply": PaymentReply}


class _AsOnTheWire(GenerateJsonSchema):
    """What we read may lack whatever has a default; what we write lacks only what is null by default."""

    def field_is_required(self, field: Any, total: bool) -> bool:
        """Whether every message of ours holds the field, or every message sent to us must."""
        if self.mode == "validation":
            return super().field_is_required(field, total)
        return "default" not in field["schema"] or field["schema"]["default"] is not None


def json_files() -> dict[str, str]:
    """{file name: text} of every schema and every example; `payment.failed` is told in payment_failed.….json."""
    values: dict[str, Any] = {
        **{_file(kind, "schema"): _schema(kind, model, mode="validation") for kind, model in _COMING_IN.items()},
        **{_file(kind, "schema"): _schema(kind, model, mode="serialization") for kind, model in _GOING_OUT.items()},
        **{_file(kind, "example"): message for kind, message in examples().items()},
        _file("payment.reply", "example"): REPLY,
        _file("order.created", "binary.example"): ORDER,
    }
    return {name: json.dumps(value, indent=2, ensure_ascii=False) + "\n" for name, value in values.items()}


def write_json_files(folder: Path = FOLDER) -> None:
    """Write them all, over those that are there."""
    for name, text in json_files().items():
        (folder / name).write_text(text, encoding="utf-8")


def _file(kind: str, form: str) -> str:
    return f"{kind.replace('.', '_')}.{form}.json"


def _schema(kind: str, model: type[BaseModel], *, mode: JsonSchemaMode) -> dict[str, Any]:
    made = model.model_json_schema(schema_generator=_AsOnTheWire, mode=mode)
    if issubclass(model, CloudEvent):
        # The body tells a structured event by its specversion: without it the message is read as plain data.
        made["required"] = [name for name in made["properties"] if name in {*made["required"], "specversion", "type"}]
    head = {
        "$schema": _AsOnTheWire.schema_dialect,
        "$id": f"urn:payment-worker:{kind}",
        "title": kind,
        "description": made["description"],
    }
    return {**head, **{name: part for name, part in made.items() if name not in head}}


if __name__ == "__main__":
    write_json_files()
