"""Card data in a message that must hold none: find it, and mask it wherever the message has to be kept.

A queue that carries card numbers puts every system on it in scope of PCI DSS. Pure.
Sources: ISO/IEC 7812 (issuer ranges, Luhn), https://docs.stripe.com/security/guide.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

# What people paste between groups: spaces and dashes of any width, line breaks (in JSON as \n), underscores. No dots:
# every tenth coordinate of sixteen digits would be a card.
_SEPARATOR: Final = rb"(?:[ \t\r\n_-]|\\[nrt]|\xc2\xa0|\xe2\x80[\x80-\x95\xaf])"

# 12 digits or more, in groups with at most two separators between; not the tail of a decimal fraction. A UUID is
# matched whole to be passed over: some of them start with sixteen digits, and now and then these pass Luhn.
_CANDIDATE: Final = re.compile(
    rb"(?<![0-9a-z])(?:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32})(?![0-9a-z])"
    rb"|(?P<run>(?<![0-9])(?<![0-9]\.)[0-9](?:" + _SEPARATOR + rb"{0,2}[0-9]){11,})",
    re.IGNORECASE,
)
# The same where nothing is passed over and letters do not matter, which is some times as quick. It finds at least the
# digits of every number that the one above does.
_RUN: Final = re.compile(rb"[0-9](?<![0-9]{2})(?<![0-9]\.[0-9])(?:" + _SEPARATOR + rb"{0,2}[0-9]){11,}")
_GROUP: Final = re.compile(rb"[0-9]+")
_SECRET_FIELD: Final = re.compile(
    rb'("(?:cvc2?|cvv2?|card_?cvc|card_?number|security_?code)"\s*:\s*)("[^"\\]{1,64}"|[0-9]{1,19})', re.IGNORECASE
)
_SECRET_NAMES: Final = re.compile(r"cvc2?|cvv2?|card_?cvc|card_?number|security_?code", re.IGNORECASE)
_ESCAPED: Final = re.compile(rb"\\u00(2[0d]|3[0-9])", re.IGNORECASE)

LEAST_CARD_DIGITS: Final = 12
MAX_CARD_DIGITS: Final = 19

# (first, last, digits compared, lengths): who issues cards, and how long their numbers are.
_ISSUERS: Final = (
    # Visa. Of 13 digits none is issued any more, while every tenth barcode that starts with a 4 would be one.
    (4, 4, 1, {16, 19}),
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

# {the first four digits: the lengths that a number with them may have}
_LENGTHS: Final = {
    b"%d" % start: {
        length for first, last, size, some in _ISSUERS if first <= start // 10 ** (4 - size) <= last for length in some
    }
    for start in range(2000, 7000)
}


def mask_cards(body: bytes) -> bytes:
    """The bytes with every card number reduced to its last four digits and every security code blanked.

    Works on bytes, so that a body which is no JSON is masked too. Without card data the very same object
    comes back.
    """
    plain = body
    if b"\\u00" in body:  # digits written as JSON escapes; only rewritten where that uncovers something
        plain = _ESCAPED.sub(lambda match: bytes([int(match[1], 16)]), body)
    masked = _mask_numbers(plain) if _has_digits_for_a_card(plain) else plain
    if b'"' in masked:
        masked = _SECRET_FIELD.sub(rb'\1"***"', masked)
    return body if masked == plain else masked


def mask_text(text: str) -> str:
    """The same for a string."""
    if len(text) < LEAST_CARD_DIGITS and '"' not in text:  # names, states, codes: nearly all that is asked about
        return text
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


def _has_digits_for_a_card(plain: bytes) -> bool:
    """Most messages end here: counting costs a tenth of searching."""
    return len(plain) - len(plain.translate(None, b"0123456789")) >= LEAST_CARD_DIGITS


def _mask_numbers(plain: bytes) -> bytes:
    """Until no card number is left: what one of them leaves of itself may be the first digits of the next."""
    if all(_mask_groups(run[0]) == run[0] for run in _RUN.finditer(plain)):
        return plain
    masked = _CANDIDATE.sub(_mask_run, plain)
    while masked != plain:
        plain, masked = masked, _CANDIDATE.sub(_mask_run, masked)
    return masked


def _mask_run(match: re.Match[bytes]) -> bytes:
    run = match["run"]
    return match[0] if run is None else _mask_groups(run)


def _mask_groups(run: bytes) -> bytes:
    """Masks what is a card number from one separator to another: beside it an expiry or a count may stand.

    Never a part of an unbroken run: every tenth long number has some stretch that passes Luhn.
    """
    groups = [(group.start(), group.end()) for group in _GROUP.finditer(run)]
    out, index = bytearray(run), 0
    while index < len(groups):
        last = _card_from(run, groups, index)
        if last is None:
            index += 1
            continue
        start, end = groups[index][0], groups[last][1]
        out[start:end] = _blank(run[start:end])
        index = last + 1
    return bytes(out)


def _card_from(run: bytes, groups: list[tuple[int, int]], first: int) -> int | None:
    """The index of the group that ends the longest card number which starts with the first one, if any."""
    found, digits = None, b""
    for last in range(first, len(groups)):
        start, end = groups[last]
        digits += run[start : min(end, start + MAX_CARD_DIGITS + 1)]
        if len(digits) > MAX_CARD_DIGITS:
            break
        if _is_card(digits):
            found = last
    return found


def _is_card(digits: bytes) -> bool:
    if len(digits) not in _LENGTHS.get(digits[:4], ()):
        return False
    doubled = [
        digit - 48 if index % 2 == 0 else (digit - 48) * 2 - 9 * (digit > 52)
        for index, digit in enumerate(reversed(digits))
    ]
    return sum(doubled) % 10 == 0


def _blank(number: bytes) -> bytes:
    out, left = bytearray(number), sum(48 <= byte <= 57 for byte in number) - 4
    for index, byte in enumerate(number):
        if 48 <= byte <= 57 and left > 0:
            out[index] = 42
            left -= 1
    return bytes(out)
