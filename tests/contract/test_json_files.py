"""The JSON Schema files and examples: in step with the models, and true of what the worker says."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel

from schemas import (
    EVENT_MODELS,
    AmqpProperties,
    CaptureRequested,
    OrderCancelled,
    OrderCreated,
    PaymentReply,
    RefundRequested,
    read_order_created,
)
from schemas.json_files import FOLDER, json_files, write_json_files
from worker.errors import Refusal
from worker.payment import (
    Answer,
    Intent,
    Payment,
    PaymentState,
    answer_of_intent,
    answer_of_refusal,
    event_of,
)

MODELS: Mapping[str, type[BaseModel]] = {
    "order_created": OrderCreated,
    "order_cancelled": OrderCancelled,
    "payment_capture_requested": CaptureRequested,
    "refund_requested": RefundRequested,
    "payment_reply": PaymentReply,
    **{kind.replace(".", "_"): model for kind, model in EVENT_MODELS.items()},
}
CLOUD_EVENTS = [name for name in MODELS if name != "payment_reply"]


def read(name: str) -> Any:
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


def validator(name: str, definition: str | None = None) -> Draft202012Validator:
    schema = read(f"{name}.schema.json")
    if definition:
        schema = {"$schema": schema["$schema"], "$defs": schema["$defs"], "$ref": f"#/$defs/{definition}"}
    return Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)


def faults(name: str, message: Any, definition: str | None = None) -> list[str]:
    return [error.json_path for error in validator(name, definition).iter_errors(message)]


def without(message: dict[str, Any], path: str) -> dict[str, Any]:
    """A copy that lacks one field, which must be there."""
    copy = json.loads(json.dumps(message))
    *parents, last = path.split(".")
    inner = copy
    for parent in parents:
        inner = inner[parent]
    del inner[last]
    return copy


def test_the_files_are_those_of_the_models() -> None:
    there = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")}
    assert there == json_files(), "run: python -m schemas.json_files"


def test_the_generator_writes_what_it_tells(tmp_path: Path) -> None:
    write_json_files(tmp_path)
    assert {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()} == json_files()


@pytest.mark.parametrize("name", MODELS)
def test_a_schema_is_a_valid_2020_12_schema_with_a_name_of_its_own(name: str) -> None:
    schema = read(f"{name}.schema.json")
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert re.fullmatch(r"urn:payment-worker:(order|payment|refund)\.[a-z_]+", schema["$id"])
    assert schema["$id"].endswith(f":{schema['title']}")
    assert schema["title"].replace(".", "_") == name
    assert schema["description"]
    assert schema["type"] == "object"


@pytest.mark.parametrize("name", MODELS)
def test_an_example_is_valid_by_schema_and_by_model(name: str) -> None:
    example = read(f"{name}.example.json")
    assert faults(name, example) == []
    told = MODELS[name].model_validate_json(json.dumps(example)).model_dump(mode="json", exclude_unset=True)
    assert told == example


def test_the_order_examples_are_one_order_in_both_forms() -> None:
    plain = (FOLDER / "order_created.binary.example.json").read_bytes()
    assert faults("order_created", json.loads(plain), "OrderCreatedData") == []
    structured = (FOLDER / "order_created.example.json").read_bytes()
    _, from_plain = read_order_created(plain, AmqpProperties())
    event, from_structured = read_order_created(structured, AmqpProperties())
    assert from_plain == from_structured
    assert event.id
    assert event.traceparent


def test_the_example_of_the_secret_is_obviously_none() -> None:
    assert read("payment_reply.example.json")["client_secret"].endswith("_secret_THIS_IS_NOT_A_SECRET")


@pytest.mark.parametrize("name", CLOUD_EVENTS)
def test_no_schema_but_the_replys_has_a_place_for_the_secret(name: str) -> None:
    assert "secret" not in json.dumps(read(f"{name}.schema.json")["properties"])
    assert all("client_secret" not in part["properties"] for part in read(f"{name}.schema.json")["$defs"].values())


@pytest.mark.parametrize("name", MODELS)
def test_additional_properties_are_allowed_at_every_level(name: str) -> None:
    example = read(f"{name}.example.json")
    assert faults(name, {**example, "new": 1, "data": {**example.get("data", {}), "new": [1]}}) == []


@pytest.mark.parametrize(
    ("name", "required"),
    [
        ("order_created", ["specversion", "id", "source", "type", "data", "data.order_id", "data.amount"]),
        (
            "payment_intent_created",
            [
                "specversion",
                "id",
                "source",
                "type",
                "datacontenttype",
                "data",
                "data.order_id",
                "data.payment_id",
                "data.status",
                "data.amount",
                "data.amount_minor",
                "data.currency",
                "data.livemode",
                "data.sequence",
            ],
        ),
        (
            "payment_failed",
            [
                "specversion",
                "id",
                "source",
                "type",
                "data.order_id",
                "data.amount",
                "data.amount_minor",
                "data.currency",
                "data.sequence",
                "data.failure",
                "data.failure.category",
                "data.failure.message",
                "data.failure.may_retry",
            ],
        ),
        ("payment_reply", ["order_id", "payment_id", "status", "client_secret"]),
    ],
)
def test_a_message_that_lacks_a_required_field_is_invalid(name: str, required: list[str]) -> None:
    example = read(f"{name}.example.json")
    assert [path for path in required if not faults(name, without(example, path))] == []


@pytest.mark.parametrize(
    ("name", "optional"),
    [
        ("order_created", ["time", "traceparent", "datacontenttype", "data.currency", "data.metadata"]),
        ("payment_intent_created", ["traceparent", "data.cause"]),
        (
            "payment_failed",
            [
                "traceparent",
                "data.cause",
                "data.payment_id",
                "data.status",
                "data.livemode",
                "data.failure.code",
                "data.failure.decline_code",
            ],
        ),
    ],
)
def test_a_message_that_lacks_what_may_be_unknown_is_valid(name: str, optional: list[str]) -> None:
    example = read(f"{name}.example.json")
    assert [path for path in optional if faults(name, without(example, path))] == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("order_id", ""),
        ("order_id", "o/1"),
        ("order_id", "x" * 65),
        ("amount", "1e2"),
        ("amount", -1),
        ("amount", True),
        ("customer_id", "a b"),
        ("receipt_email", "nobody"),
        ("confirm", "yes"),
        ("capture_method", "later"),
        ("metadata", {"a": 5}),
        ("shipping", {}),
        ("stripe_account", "1"),
        ("statement_descriptor_suffix", "a*b"),
    ],
)
def test_the_order_schema_refuses_what_the_worker_would(field: str, value: Any) -> None:
    example = read("order_created.example.json")
    (fault,) = faults("order_created", {**example, "data": {**example["data"], field: value}})
    assert fault.startswith(f"$.data.{field}")


@pytest.mark.parametrize("name", CLOUD_EVENTS)
def test_an_event_of_another_type_is_invalid(name: str) -> None:
    assert faults(name, {**read(f"{name}.example.json"), "type": "other"}) == ["$.type"]


OPEN = Payment("o-1", PaymentState.OPEN, 5000, "kwd", None, None, None, None, None, 0)
DECLINE = Refusal(402, "card_declined", "lost_card", None, "for developers", "pi_1", "requires_payment_method", True)
UNKNOWN_TO_STRIPE = Refusal(400, "amount_too_small", None, None, "for developers")


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        (
            "payment_intent_created",
            lambda: answer_of_intent(OPEN, Intent("pi_1", "requires_payment_method", 5000, "kwd", False, "o-1")),
        ),
        ("payment_failed", lambda: answer_of_refusal(OPEN, DECLINE)),
        ("payment_failed", lambda: answer_of_refusal(OPEN, UNKNOWN_TO_STRIPE)),
        ("payment_failed", lambda: answer_of_refusal(OPEN, Refusal(400, None, None, None, ""))),
    ],
)
@pytest.mark.parametrize("is_bare", [True, False])
def test_what_the_worker_tells_is_valid_by_schema_and_by_model(
    name: str, answer: Callable[[], Answer], is_bare: bool
) -> None:
    told = answer()
    if not is_bare:
        traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        payment = replace(told.payment, cause="e-1", correlation_id="c-1", traceparent=traceparent)
        told = replace(told, payment=payment)
    event = event_of(told, source="payment-worker", now=datetime(2026, 1, 31, 12, tzinfo=UTC))
    assert faults(name, json.loads(event.body)) == []
    assert MODELS[name].model_validate_json(event.body).model_dump_json(exclude_none=True) == event.body


def test_what_the_worker_replies_is_valid_by_the_schema() -> None:
    lost = PaymentReply(order_id=None, payment_id=None, status="dead_lettered", client_secret=None)
    assert faults("payment_reply", json.loads(lost.model_dump_json())) == []
