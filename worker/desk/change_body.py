"""What an edit does to a body: sets fields of the order, all else left as it is written, or puts a whole one there.

And what differs then.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from schemas.envelope import MAX_BODY_BYTES
from schemas.strict_json import MAX_DEPTH, JsonError, decode_json
from worker.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Change:
    """What an edit does to a body, and in words. make: raises ConfigurationError for a body it cannot be done to.

    of_one: what may be done to one letter alone, since two would be the same order after it; None for any other change.
    """

    make: Callable[[bytes], bytes]
    told: str
    of_one: str | None = None


def change_of(arguments: argparse.Namespace) -> Change:
    """Raises ConfigurationError for words that make none."""
    if bool(arguments.set) == (arguments.body is not None):
        raise ConfigurationError("say what to change: --set FIELD=VALUE, or --body FILE, and not both")
    if arguments.body is not None:
        new = _read_body(arguments.body)
        return Change(lambda _: new, "a whole body", of_one="--body")
    fields = dict(map(_field, arguments.set))
    names = ", ".join(dict.fromkeys(".".join(path) for path in fields))
    of_one = "--set order_id" if any(path[0] == "order_id" for path in fields) else None
    return Change(partial(set_fields, fields=fields), f"set {names}", of_one)


def set_fields(body: bytes, fields: Mapping[tuple[str, ...], Any]) -> bytes:
    """The body with other fields in its order; all else in it stays as it is written, numbers by their digits.

    fields: path → value as read_json gives it, or REMOVED. Where nothing changes, the body itself comes back.
    Raises ConfigurationError.
    """
    try:
        value = read_json(body)
    except JsonError as error:
        raise ConfigurationError(f"its body {error}; give the whole body with --body FILE") from None
    data = _data_in(value)
    if not isinstance(data, dict):
        raise ConfigurationError("its body holds no JSON object of order data; give the whole body with --body FILE")
    before = written(value)
    for path, new in fields.items():
        _set(data, path, new)
    after = written(value)
    return body if after == before else after.encode()


def differences(before: bytes, after: bytes) -> dict[str, tuple[str | None, str | None]]:
    """The fields of the order that differ, by their paths: before and after as they are written, None for no field."""
    was, now_is = dict(_leaves(before)), dict(_leaves(after))
    return {path: (was.get(path), now_is.get(path)) for path in was | now_is if was.get(path) != now_is.get(path)}


def _leaves(body: bytes) -> Iterator[tuple[str, str]]:
    """Of a body that holds no JSON, none."""
    try:
        pending = [("", _data_in(read_json(body)))]
    except JsonError:
        return
    while pending:
        path, value = pending.pop(0)
        if isinstance(value, dict) and value:
            pending = [(f"{path}.{name}".lstrip("."), inner) for name, inner in value.items()] + pending
        else:
            yield path, written(value)


def _data_in(value: Any) -> Any:
    """The order's own part of a message of either form."""
    return value.get("data") if isinstance(value, dict) and "specversion" in value else value


@dataclass(frozen=True, slots=True)
class Number:
    """A number of JSON, as it was written."""

    digits: str


REMOVED: Final = object()
_AS_WRITTEN: Final = json.JSONDecoder(parse_float=Number, parse_int=Number)


def read_json(text: bytes) -> Any:
    """As decode_json, but every number is a Number. Raises JsonError."""
    decode_json(text)
    return _AS_WRITTEN.decode(text.decode())


def written(value: Any) -> str:
    """What read_json has read, as JSON. Recursion is bounded by what that takes."""
    if isinstance(value, Number):
        return value.digits
    if isinstance(value, dict):
        return "{" + ",".join(f"{written(name)}:{written(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def _set(data: dict[str, Any], path: tuple[str, ...], new: Any) -> None:
    *parents, last = path
    for depth, name in enumerate(parents, start=1):
        if name not in data and new is REMOVED:
            return
        inner = data.setdefault(name, {})
        if not isinstance(inner, dict):
            raise ConfigurationError(f"{'.'.join(path[:depth])} is no object, so that it has no {path[depth]}")
        data = inner
    if new is REMOVED:
        data.pop(last, None)
    else:
        data[last] = new


def _field(text: str) -> tuple[tuple[str, ...], Any]:
    name, sign, value = text.partition("=")
    path = tuple(name.removesuffix(":").split("."))
    if not sign or not all(path) or len(path) > MAX_DEPTH:
        raise ConfigurationError(
            f"--set {text!r}: write FIELD=TEXT, FIELD:=JSON, or FIELD= to take it out; a dot leads into an object"
        )
    try:
        text.encode()
        return path, read_json(value.encode()) if name.endswith(":") else value or REMOVED
    except UnicodeEncodeError:
        raise ConfigurationError(f"--set {text!r}: is not UTF-8 text") from None
    except JsonError as error:
        raise ConfigurationError(f"--set {text!r}: after := comes JSON, and this {error}") from None


def _read_body(name: str) -> bytes:
    try:
        with nullcontext(sys.stdin.buffer) if name == "-" else Path(name).open("rb") as file:
            body = file.read(MAX_BODY_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"{name} cannot be read: {error.strerror}") from None
    if len(body) > MAX_BODY_BYTES:
        raise ConfigurationError(f"{name} is larger than {MAX_BODY_BYTES} bytes, which no order is taken of")
    return body
