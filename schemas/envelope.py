"""The CloudEvents 1.0 envelope, in both its AMQP forms.

Structured: the whole event is the JSON body. Binary: the body is `data`, the attributes travel as
`cloudEvents:` headers or, where those are missing, as AMQP properties.
Sources: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md and …/bindings/amqp-protocol-binding.md.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from schemas.strict_json import JsonError, decode_json

# An order event is one or two kilobytes. 256 KiB is what CloudEvents asks every intermediary to forward four
# times over, and a few hundred of them at once still fit a small container.
MAX_BODY_BYTES: Final = 256 * 1024

_HEADER_PREFIXES: Final = ("cloudEvents:", "cloudEvents_")

# The spec's own list of what an attribute may not hold; PostgreSQL keeps no NUL either.
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# Source: https://www.w3.org/TR/trace-context/#traceparent-header; one that differs is to be ignored.
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

DataT = TypeVar("DataT", bound=BaseModel)


class FieldError(ValueError):
    """Raised inside a model where fields disagree: pydantic tells no field there, so it names its own."""

    def __init__(self, name: str, problem: str) -> None:
        self.name = name
        super().__init__(problem)


class MessageError(ValueError):
    """A message that is not what the contract says. `problems` pairs each field with what is wrong there."""

    def __init__(self, *problems: tuple[str, str]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{name}: {problem}" for name, problem in problems))

    @classmethod
    def of(cls, error: ValidationError) -> "MessageError":
        """The same told from pydantic's error, without the values: they may be private."""
        problems = []
        for fault in error.errors(include_input=False, include_url=False, include_context=True):
            path = ".".join(str(step)[:40] for step in fault["loc"])
            cause = fault.get("ctx", {}).get("error")
            name = cause.name if isinstance(cause, FieldError) else path or "body"
            problems.append((name, str(cause) if cause else fault["msg"][0].lower() + fault["msg"][1:]))
        return cls(*problems[:10])


@dataclass(frozen=True, slots=True)
class AmqpProperties:
    """The AMQP 0.9.1 properties that a CloudEvent may travel in. Header values are as decoded; str or other."""

    content_type: str | None = None
    content_encoding: str | None = None
    message_id: str | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    type: str | None = None
    app_id: str | None = None
    timestamp: datetime | None = None
    headers: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class IncomingEvent:
    """An event as read from either form. `id` is None where the producer gave none."""

    type: str | None
    id: str | None
    source: str | None
    time: str | None
    traceparent: str | None
    data: Mapping[str, Any]


class CloudEvent(BaseModel, Generic[DataT]):
    """A structured CloudEvent. Extension attributes beyond those named are ignored."""

    model_config = ConfigDict(defer_build=True, frozen=True, extra="ignore")

    specversion: Literal["1.0"] = "1.0"
    id: str = Field(min_length=1, max_length=255, description="The same outcome told again has the same id.")
    source: str = Field(min_length=1, max_length=255)
    type: str = Field(min_length=1, max_length=255)
    subject: str | None = Field(default=None, description="The order id.")
    time: datetime | None = None
    datacontenttype: str = "application/json"
    traceparent: str | None = Field(default=None, description="W3C Trace Context, carried through.")
    data: DataT


def read_event(body: bytes, properties: AmqpProperties, *, data_key: str) -> IncomingEvent:
    """Read a message in either form; a plain JSON object that has `data_key` is taken as `data`.

    The form is told by the body, not by the content type, which producers often leave wrong.
    Raises MessageError naming the field that is wrong. Does not judge `type` or what is inside `data`.
    """
    if "\x00" in (properties.correlation_id or ""):
        raise MessageError(("correlation_id", "contains a NUL character, which no ledger can keep"))
    encoding = properties.content_encoding or ""
    if encoding.lower() not in ("", "utf-8", "identity"):
        raise MessageError(("content_encoding", f"is {encoding[:40]!r}; send the body plain"))
    value = read_json_object(body)
    if "specversion" in value:
        return _read_structured(value, properties)
    if data_key not in value and not _attribute(properties, "specversion"):
        raise MessageError((data_key, "is missing; send a CloudEvents envelope or an object that has it"))
    return _read_binary(value, properties)


def claimed_type(body: bytes, properties: AmqpProperties) -> str | None:
    """What a message says that it is, as read_event reads it; None where that cannot be read. Never raises."""
    outside = _attribute(properties, "type") or properties.type or None
    if b"specversion" not in body:
        return outside
    try:
        value = read_json_object(body)
    except MessageError:
        return outside
    return _text(value.get("type")) if "specversion" in value else outside


def read_json_object(body: bytes) -> dict[str, Any]:
    """The object that a body is, numbers as Decimal. Raises MessageError naming `body`."""
    if len(body) > MAX_BODY_BYTES:
        raise MessageError(("body", f"is {len(body)} bytes; at most {MAX_BODY_BYTES} are taken"))
    try:
        value = decode_json(body)
    except JsonError as error:
        raise MessageError(("body", str(error))) from None
    if not isinstance(value, dict):
        raise MessageError(("body", "is JSON but not an object"))
    return value


def _read_structured(value: dict[str, Any], properties: AmqpProperties) -> IncomingEvent:
    problems = [
        (name, "must be a non-empty string")
        for name in ("id", "source", "type")
        if not isinstance(value.get(name), str) or not value[name]
    ]
    if value["specversion"] != "1.0":
        problems.append(("specversion", "must be '1.0'"))
    if not isinstance(value.get("data"), dict):
        hint = "; data_base64 is not read" if "data_base64" in value else ""
        problems.append(("data", f"must be a JSON object{hint}"))
    problems += _problems_of({name: _text(value.get(name)) for name in ("id", "source", "type")})
    if problems:
        raise MessageError(*problems)
    return IncomingEvent(
        type=value["type"],
        id=value["id"],
        source=value["source"],
        time=_text(value.get("time")),
        traceparent=_trace(value.get("traceparent")) or _trace(properties.headers.get("traceparent")),
        data=value["data"],
    )


def _read_binary(data: dict[str, Any], properties: AmqpProperties) -> IncomingEvent:
    version = _attribute(properties, "specversion")
    if version not in (None, "1.0"):
        raise MessageError(("cloudEvents:specversion", "must be '1.0'"))
    stamp = properties.timestamp
    attributes = {
        "type": _attribute(properties, "type") or properties.type or None,
        "id": _attribute(properties, "id") or properties.message_id or None,
        "source": _attribute(properties, "source") or properties.app_id or None,
    }
    if problems := _problems_of(attributes):
        raise MessageError(*problems)
    return IncomingEvent(
        **attributes,
        time=_attribute(properties, "time") or (stamp.astimezone(UTC).isoformat() if stamp else None),
        traceparent=_trace(_attribute(properties, "traceparent")) or _trace(properties.headers.get("traceparent")),
        data=data,
    )


def _problems_of(attributes: Mapping[str, str | None]) -> list[tuple[str, str]]:
    """What keeps the attributes that are there from being carried on in our own events."""
    problems = []
    for name, value in attributes.items():
        if value and len(value) > 255:
            problems.append((name, "is longer than 255 characters"))
        if value and _CONTROL.search(value):
            problems.append((name, "contains a control character"))
    return problems


def _attribute(properties: AmqpProperties, name: str) -> str | None:
    for prefix in _HEADER_PREFIXES:
        if prefix + name in properties.headers:
            return _text(properties.headers[prefix + name])
    return None


def _trace(value: object) -> str | None:
    return value if isinstance(value, str) and _TRACEPARENT.fullmatch(value) else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
