"""JSON as money needs it: RFC 8259 and no more, numbers kept by their digits, no key twice.

Python's own decoder takes NaN, Infinity and duplicate keys, and reads 0.1 through a float; this one does not.
Source: https://www.rfc-editor.org/rfc/rfc8259.
"""

import json
import re
from decimal import Decimal, InvalidOperation
from typing import Any, Final, NoReturn

# The contract is four levels deep. The bound keeps the decoder far from Python's recursion limit.
MAX_DEPTH: Final = 64

_SURROGATE: Final = re.compile("[\ud800-\udfff]")


class JsonError(ValueError):
    """A body that is not the JSON we take; the text says what is wrong and where."""


def decode_json(body: bytes) -> Any:
    """UTF-8 JSON → dict, list, str, bool, None, and Decimal for every number.

    Raises JsonError for anything else, nesting past MAX_DEPTH, duplicate keys and half surrogate pairs included:
    a string that is no Unicode text can be written neither to the ledger nor back to the bus.
    """
    if not body:
        raise JsonError("is empty; send a JSON object")
    if body.startswith(b"\xef\xbb\xbf"):
        raise JsonError("starts with a byte order mark; send plain UTF-8")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise JsonError(f"is not UTF-8 (byte {error.start})") from None
    try:
        value = _DECODER.decode(text)
    except RecursionError:
        raise JsonError(f"is nested deeper than {MAX_DEPTH} levels") from None
    except json.JSONDecodeError as error:
        raise JsonError(f"is not JSON: {error.msg} at character {error.pos}") from None
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise JsonError(f"is nested deeper than {MAX_DEPTH} levels")
    if ("\\ud" in text or "\\uD" in text) and _has_half_a_pair(value):
        raise JsonError("has half a surrogate pair, which is not Unicode text")
    return value


def _depth(value: object) -> int:
    """Levels of nesting, counted without recursion."""
    level, here = 0, [value]
    while here:
        level += 1
        inner: list[object] = []
        for node in here:
            if isinstance(node, dict):
                inner += [child for child in node.values() if isinstance(child, dict | list)]
            elif isinstance(node, list):
                inner += [child for child in node if isinstance(child, dict | list)]
        here = inner
    return level


def _has_half_a_pair(value: object) -> bool:
    """Whether any string or key holds what only a \\u escape can bring in. Recursion is bounded by MAX_DEPTH."""
    if isinstance(value, str):
        return _SURROGATE.search(value) is not None
    if isinstance(value, dict):
        return any(_has_half_a_pair(key) or _has_half_a_pair(inner) for key, inner in value.items())
    return isinstance(value, list) and any(map(_has_half_a_pair, value))


def _number(digits: str) -> Decimal:
    try:
        return Decimal(digits)
    except InvalidOperation:
        raise JsonError(f"has the number {digits[:20]}… which is out of any range") from None


def _refuse_constant(name: str) -> NoReturn:
    raise JsonError(f"has {name}, which is not JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise JsonError(f"has the key {key[:40]!r} twice; which one counts is anybody's guess")
            seen.add(key)
    return value


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_object, parse_float=_number, parse_int=_number, parse_constant=_refuse_constant
)
