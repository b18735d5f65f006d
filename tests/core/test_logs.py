"""The last line of defence: what slipped into a log call is taken out before it is written."""

import io
import json
import logging
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from worker.client_secret import ClientSecret
from worker.logs import configure_logging, scrub


def scrubbed(value: Any) -> Any:
    return scrub(None, "info", {"event": "x", "value": value})["value"]


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("sk_test_abc123", "***"),
        ("key sk_live_abc_DEF, sent", "key ***, sent"),
        ("rk_live_abc rk_test_x", "*** ***"),
        ("whsec_abcDEF", "***"),
        ("pi_3Abc_secret_xYz", "***"),
        ('{"client_secret": "pi_3Abc_secret_xYz"}', '{"client_secret": "***"}'),
        ("seti_1_secret_2", "***"),
        ("amqp://user:hunter2@host:5672/", "amqp://***@host:5672/"),
        ("postgresql+psycopg://u:p%40ss@h/d failed", "postgresql+psycopg://***@h/d failed"),
        ("pay with 4242 4242 4242 4242", "pay with **** **** **** 4242"),
        ("4242424242424242", "************4242"),
        ("pi_3Abc", "pi_3Abc"),
        ("http://127.0.0.1:8080/readyz", "http://127.0.0.1:8080/readyz"),
        ("amqp://host:5672/", "amqp://host:5672/"),
        ("2026-01-31T12:00:00.123456Z", "2026-01-31T12:00:00.123456Z"),
    ],
)
def test_keys_secrets_passwords_and_card_numbers_are_taken_out_and_nothing_else(text: str, written: str) -> None:
    assert scrubbed(text) == written


@pytest.mark.parametrize("hidden", ["sk_test_abc", "pi_1_secret_2", "amqp://u:pw@h", "4242424242424242"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda it: [it],
        lambda it: (it,),
        lambda it: {it},
        lambda it: frozenset({it}),
        lambda it: {"a": it},
        lambda it: {"a": [{"b": (it,)}]},
        ValueError,
        lambda it: {"error": ValueError(it)},
        str.encode,
        lambda it: [it.encode()],
        lambda it: f"before {it} after",
        lambda it: f"line\n{it}\nline",
    ],
)
def test_they_are_found_in_nested_values_and_in_whatever_becomes_text(hidden: str, wrap: Any) -> None:
    written = json.dumps(scrubbed(wrap(hidden)), default=repr)
    assert hidden not in written
    assert hidden.removeprefix("amqp://u:").removesuffix("@h") not in written


def test_a_card_number_that_is_a_decimal_is_masked() -> None:
    assert scrubbed(Decimal(4242424242424242)) == "************4242"


def test_the_client_secret_itself_stays_unreadable() -> None:
    assert scrubbed(ClientSecret("x")) == "ClientSecret(***)"
    assert scrubbed({"a": [ClientSecret("x")]}) == {"a": ["ClientSecret(***)"]}


def test_plain_values_keep_their_type() -> None:
    for value in (5, 1.5, True, None, "text", [1, "a"], {"a": None}):
        assert scrubbed(value) == value
        assert type(scrubbed(value)) is type(value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    )
)
def test_any_value_can_be_logged(value: Any) -> None:
    json.dumps(scrubbed(value))


@pytest.fixture
def written() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """The lines of a process that logs as JSON from `info` on, as they were written; the tests' own logging after."""
    stream, root = io.StringIO(), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers = []  # or the handlers of pytest would be closed
    configure_logging(level="info", as_json=True, stream=stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.handlers, root.level = handlers, level


Written = Callable[[], list[dict[str, Any]]]


def test_a_line_tells_its_event_level_time_and_what_is_bound(written: Written) -> None:
    structlog.contextvars.bind_contextvars(order_id="order-1")
    structlog.get_logger().warning("order.retried", attempt=2, code=None)
    [line] = written()
    assert line.pop("timestamp").endswith("Z")
    assert line == {"order_id": "order-1", "attempt": 2, "code": None, "event": "order.retried", "level": "warning"}


@pytest.mark.parametrize("hidden", ["sk_test_abc", "pi_1_secret_2", "://u:pw@h", "4242424242424242"])
def test_nothing_that_a_line_is_made_of_brings_a_secret_out(written: Written, hidden: str) -> None:
    log = structlog.get_logger()
    structlog.contextvars.bind_contextvars(bound=hidden)
    log.info(hidden)
    try:
        raise ValueError(hidden)
    except ValueError:
        log.exception("order.bug")
    logging.getLogger("elsewhere").error("it said %s", hidden)

    lines = written()
    assert len(lines) == 3
    assert "Traceback" in lines[1]["exception"]
    assert hidden not in json.dumps(lines)


def test_nothing_is_made_of_a_line_below_the_level(written: Written) -> None:
    class Told:
        def __str__(self) -> str:
            raise AssertionError("was asked for its text")

    structlog.get_logger().debug("a.detail", value=Told())
    assert written() == []
    with pytest.raises(AssertionError, match="was asked"):
        structlog.get_logger().info("a.fact", value=Told())
