"""Card data in a message that must hold none: find it, and mask it wherever the message has to be kept.

A queue that carries card numbers puts every system on it in scope of PCI DSS. Pure.
Sources: ISO/IEC 7812 (issuer ranges, Luhn), https://docs.stripe.com/security/guide.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

# 12 to 19 digits, in groups with single spaces or dashes if any; not the tail of a decimal fraction.
_CANDIDATE: Final = re.compile(rb"(?<![0-9.])[2-6](?:[ -]?[0-9]){11,18}(?![0-9])")
_SECRET_FIELD: Final = re.compile(
    rb'("(?:cvc2?|cvv2?|card_?cvc|card_?number|security_?code)"\s*:\s*)("[^"\\]{0,64}"|[0-9]{1,19})', re.IGNORECASE
)
_SECRET_NAMES: Final = re.compile(r"cvc2?|cvv2?|card_?cvc|card_?number|security_?code", re.IGNORECASE)
_ESCAPED: Final = re.compile(rb"\\u00(2[0d]|3[0-9])", re.IGNORECASE)

# (first, last, digits compared, lengths): who issues cards, and how long their numbers are.
_ISSUERS: Final = (
    (4, 4, 1, {13, 16, 19}),  # Visa
    (51, 55, 2, {16}),  # Mastercard
    (2221, 2720, 4, {16}),
    (34, 34, 2, {15}),  # American Express
    (37, 37, 2, {15}),
    (6011, 6011, 4, {16, 17, 18, 19}),  # Discover
    (644, 659, 3, {16, 17, 18, 19}),
    (300, 305, 3, {14}),  # Diners Club
    (36, 36, 2, {14, 16}),
    (38, 39, 2, {14, 16}),
    (3528, 3589, 4, {16, 17, 18, 19}),  # JCB
    (62, 62, 2, {16, 17, 18, 19}),  # UnionPay
    (5018, 5018, 4, {12, 13, 14, 15, 16, 17, 18, 19}),  # Maestro
    (5020, 5020, 4, {12, 13, 14, 15, 16, 17, 18, 19}),
    (5038, 5038, 4, {12, 13, 14, 15, 16, 17, 18, 19}),
    (6304, 6304, 4, {12, 13, 14, 15, 16, 17, 18, 19}),
    (6759, 6763, 4, {12, 13, 14, 15, 16, 17, 18, 19}),
)


def mask_cards(body: bytes) -> bytes:
    """The bytes with every card number reduced to its last four digits and every security code blanked.

    Works on bytes, so that a body which is no JSON is masked too. Without card data the very same object
    comes back.
    """
    plain = body
    if b"\\u00" in body:  # digits written as JSON escapes; only rewritten where that uncovers something
        plain = _ESCAPED.sub(lambda match: bytes([int(match[1], 16)]), body)
    masked = _CANDIDATE.sub(_mask_number, plain)
    masked = _SECRET_FIELD.sub(rb'\1"***"', masked)
    return body if masked == plain else masked


def mask_text(text: str) -> str:
    """The same for a string."""
    encoded = text.encode("utf-8", "surrogatepass")
    masked = mask_cards(encoded)
    return text if masked is encoded else masked.decode("utf-8", "surrogatepass")


def find_card_field(data: Mapping[str, Any]) -> str | None:
    """The dotted path of the first field that holds card data, or None. No recursion: depth is the sender's."""
    pending: list[tuple[str, Any]] = [("", data)]
    while pending:
        path, value = pending.pop()
        if isinstance(value, Mapping):
            for key, inner in value.items():
                inner_path = f"{path}.{key[:40]}".lstrip(".")
                if mask_text(key) != key:
                    return mask_text(inner_path)
                if _SECRET_NAMES.fullmatch(key) and inner not in (None, ""):
                    return inner_path
                pending.append((inner_path, inner))
        elif isinstance(value, list):
            pending += [(f"{path}.{index}", inner) for index, inner in enumerate(value)]
        elif not isinstance(value, bool) and value is not None:
            text = str(value)
            if mask_text(text) != text:
                return path
    return None


def _mask_number(match: re.Match[bytes]) -> bytes:
    """Masks what is a card number from one separator to another: beside it an expiry or a count may stand.

    Never a part of an unbroken run: every tenth long number has some stretch that passes Luhn.
    """
    run = match[0]
    starts = [0, *(index + 1 for index, byte in enumerate(run) if byte in b" -")]
    ends = [*(start - 1 for start in starts[1:]), len(run)]
    for start in starts:
        for end in reversed(ends):
            digits = [byte - 48 for byte in run[start:end] if byte not in b" -"]
            if len(digits) >= 12 and _is_card(digits):
                return run[:start] + _blank(run[start:end], len(digits)) + run[end:]
    return run


def _is_card(digits: list[int]) -> bool:
    number = "".join(map(str, digits))
    if not any(
        len(digits) in lengths and first <= int(number[:compared]) <= last
        for first, last, compared, lengths in _ISSUERS
    ):
        return False
    doubled = [digit if index % 2 == 0 else digit * 2 - 9 * (digit > 4) for index, digit in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def _blank(run: bytes, length: int) -> bytes:
    out, seen = bytearray(), 0
    for byte in run:
        is_digit = 48 <= byte <= 57
        seen += is_digit
        out.append(42 if is_digit and seen <= length - 4 else byte)
    return bytes(out)
