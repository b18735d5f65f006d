"""Bracketed form bodies (`a[b][0]=x`, `a[]=x`) as nested dicts and lists: the encoding of Stripe's v1 API.

Source: https://docs.stripe.com/api (form-encoded requests) and stripe-python's `_encode.py`, which numbers list items.
Every leaf is a string: types belong to the parameter, not to the wire.
"""

from typing import Any
from urllib.parse import parse_qsl

# Limits so that one hostile body cannot cost the process much; Stripe's deepest parameter nests 6 deep.
MAX_FIELDS = 2000
MAX_DEPTH = 12

Pairs = list[tuple[str, str]]


class FormError(ValueError):
    """The body is not a form that can be read: broken brackets, one name used as both text and group, too big."""


def read_pairs(text: str) -> Pairs:
    """The fields in the order they were sent. Raises FormError for bytes that are no form or for too many fields."""
    try:
        return parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError as error:
        raise FormError(str(error)) from error


def nest(pairs: Pairs) -> dict[str, Any]:
    """`[("a[b]", "x")]` as `{"a": {"b": "x"}}`; a group whose names are all digits becomes a list in their order.

    A group named `metadata` always stays a dict, for its names are the caller's own and may be digits.
    Raises FormError.
    """
    tree: dict[str, Any] = {}
    grouped = False
    for name, value in pairs:
        if "[" not in name:
            if isinstance(tree.get(name), dict):
                raise FormError(f"{name} is given both as a value and as a group")
            tree[name] = value
        else:
            grouped = True
            _put(tree, _segments(name), value)
    return {name: _settle(name, value) for name, value in tree.items()} if grouped else tree


def _segments(name: str) -> list[str]:
    head, *rest = name.split("[")
    if not head or any(not part.endswith("]") or "]" in part[:-1] for part in rest):
        raise FormError(f"unbalanced brackets in the name {name!r}")
    if len(rest) > MAX_DEPTH:
        raise FormError(f"a name is nested more than {MAX_DEPTH} deep")
    return [head, *(part[:-1] for part in rest)]


def _put(tree: dict[str, Any], path: list[str], value: str) -> None:
    node = tree
    for segment in path[:-1]:
        child = node.setdefault(_name_in(node, segment), {})
        if not isinstance(child, dict):
            raise FormError(f"{path[0]} is given both as a value and as a group")
        node = child
    leaf = _name_in(node, path[-1])
    if isinstance(node.get(leaf), dict):
        raise FormError(f"{path[0]} is given both as a value and as a group")
    node[leaf] = value


def _name_in(node: dict[str, Any], segment: str) -> str:
    """An empty segment (`a[]`) means "the next one"."""
    return segment or str(len(node))


def _settle(name: str, value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    settled = {key: _settle(key, item) for key, item in value.items()}
    if name == "metadata" or not all(key.isascii() and key.isdigit() for key in settled):
        return settled
    return [settled[key] for key in sorted(settled, key=int)]
