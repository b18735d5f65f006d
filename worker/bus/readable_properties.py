"""AMQP properties that cannot be decoded must not take the connection down.

pamqp decodes all properties of a message or raises, and an exception there ends the connection: the message comes
back at once, and nothing behind it is ever reached. A timestamp in nanoseconds is enough. So each property is
decoded for itself; what cannot be read is dropped and named under the header UNREADABLE.
Source: AMQP 0-9-1, section 4.2.6 (content header), and pamqp 4's base.py.
"""

from datetime import datetime
from typing import Any, Final

from pamqp import base, commands, decode

UNREADABLE: Final = "payment-worker-unreadable"
# Where a message that is handed over again carries its own headers; see worker.bus.delivery.
ORIGINAL_HEADERS: Final = "payment-worker-original-headers"
WRAPPING_DEPTH: Final = 1

# Length of a property on the wire: a fixed size, or read from its first byte (shortstr) or four (table).
_FIXED: Final = {"octet": 1, "timestamp": 8}


def tolerate_unreadable_properties() -> None:
    """Make pamqp, for this process, drop and name the properties it cannot decode. Calling it twice is harmless."""
    commands.Basic.Properties.unmarshal = _unmarshal  # type: ignore[method-assign]


def _unmarshal(self: base.BasicProperties, flags: int, data: bytes) -> None:
    unreadable: dict[str, str] = {}
    for name in self.__slots__:
        if not flags & self.flags[name]:
            continue
        kind = self.amqp_type(name)
        size = _size(kind, data)
        try:
            _, value = decode.by_type(data[:size], kind)
            setattr(self, name, _checked(name, value))
        except (ValueError, TypeError, ArithmeticError, RecursionError, OSError) as error:
            unreadable[name.removeprefix("message_") if name == "message_type" else name] = _reason(error)
        data = data[size:]
    if unreadable:
        headers: Any = getattr(self, "headers", None) or {}
        self.headers = {**headers, UNREADABLE: unreadable}  # type: ignore[attr-defined]


def _size(kind: str, data: bytes) -> int:
    if kind == "shortstr":
        return 1 + data[0] if data else 0
    if kind == "table":
        return 4 + int.from_bytes(data[:4])
    return _FIXED[kind]


def _checked(name: str, value: Any) -> Any:
    """What pamqp lets through and the layers above it trip over."""
    if name == "expiration" and value and not value.isascii():
        raise ValueError("not a number of milliseconds")
    if name == "timestamp" and isinstance(value, datetime):
        value.isoformat()
    if name == "headers" and _is_deep(value, MAX_HEADER_DEPTH + (WRAPPING_DEPTH if ORIGINAL_HEADERS in value else 0)):
        raise ValueError(f"nested deeper than {MAX_HEADER_DEPTH} levels")
    return value


# Headers are copied into dead letters; a table this deep was never meant to be read by anybody.
MAX_HEADER_DEPTH: Final = 16


def _is_deep(value: Any, most: int) -> bool:
    here, depth = [value], 0
    while here:
        depth += 1
        if depth > most:
            return True
        here = [
            inner
            for node in here
            for inner in (node.values() if isinstance(node, dict) else node)
            if isinstance(inner, dict | list)
        ]
    return False


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return f"nested deeper than {MAX_HEADER_DEPTH} levels"
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8"
    return str(error)[:100] or type(error).__name__
