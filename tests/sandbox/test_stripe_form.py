from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stripe._encode import _api_encode

from worker.sandbox.stripe_form import MAX_DEPTH, MAX_FIELDS, FormError, nest, read_pairs

# A group named metadata has a rule of its own: it never becomes a list.
NAMES = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=8).filter(lambda name: name != "metadata")
VALUES = st.recursive(
    st.text(max_size=20),
    lambda inner: st.lists(inner, min_size=1, max_size=3) | st.dictionaries(NAMES, inner, min_size=1, max_size=3),
    max_leaves=12,
)


def decode(text: str) -> dict[str, Any]:
    return nest(read_pairs(text))


@settings(deadline=None)  # the machine may be busy with other tests
@given(st.dictionaries(NAMES, VALUES, max_size=5))
def test_what_the_sdk_encodes_is_read_back(params: dict[str, Any]) -> None:
    assert decode(urlencode(list(_api_encode(params)))) == params


@pytest.mark.parametrize(
    ("text", "params"),
    [
        ("a=1&b=", {"a": "1", "b": ""}),
        ("a[b]=x&a[c]=y", {"a": {"b": "x", "c": "y"}}),
        ("a[b][0]=x&a[b][1]=y", {"a": {"b": ["x", "y"]}}),
        ("a[]=x&a[]=y", {"a": ["x", "y"]}),
        ("a[10]=k&a[9]=j", {"a": ["j", "k"]}),
        ("a[0][b]=x&a[0][c]=y&a[1][b]=z", {"a": [{"b": "x", "c": "y"}, {"b": "z"}]}),
        ("metadata[7]=x", {"metadata": {"7": "x"}}),
        ("a%5Bb%5D=%E2%82%AC+1", {"a": {"b": "€ 1"}}),
        ("a=1&a=2", {"a": "2"}),
    ],
)
def test_brackets_nest(text: str, params: dict[str, Any]) -> None:
    assert decode(text) == params


@pytest.mark.parametrize(
    "text",
    [
        "a[b=x",
        "[b]=x",
        "a[b]c=x",
        "a[b]]=x",
        "a[b[c]]=x",
        "a=1&a[b]=2",
        "a[b]=2&a=1",
        "a[b][c]=1&a[b]=2",
        "a" + "[b]" * (MAX_DEPTH + 1) + "=x",
        "&".join(f"a{n}=x" for n in range(MAX_FIELDS + 1)),
    ],
)
def test_what_is_no_form_is_refused(text: str) -> None:
    with pytest.raises(FormError):
        decode(text)
