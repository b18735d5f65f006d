"""The client secret cannot be written down by accident."""

import copy
import io
import json
import logging
import pickle
import pprint
import traceback
from dataclasses import asdict, dataclass

import pytest
import structlog

from worker.client_secret import ClientSecret
from worker.logs import configure_logging, scrub

VALUE = "pi_123_secret_abcdef"


@pytest.fixture
def secret() -> ClientSecret:
    return ClientSecret(VALUE)


def test_only_reveal_gives_it_away(secret: ClientSecret) -> None:
    assert secret.reveal() == VALUE


def test_no_way_of_making_text_shows_it(secret: ClientSecret) -> None:
    texts = [
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret!r:>60}",
        f"{secret:>60}",
        "%s %r" % (secret, secret),  # noqa: UP031 - one more way
        "{}".format(secret),  # noqa: UP032 - and another
        str([secret]),
        str({"secret": secret}),
        pprint.pformat({"secret": (secret,)}),
        str(ValueError(secret)),
    ]
    for text in texts:
        assert VALUE not in text
        assert "***" in text


def test_json_refuses_it(secret: ClientSecret) -> None:
    with pytest.raises(TypeError, match="ClientSecret is not JSON serializable"):
        json.dumps({"client_secret": secret})
    assert VALUE not in json.dumps({"client_secret": secret}, default=str)


def test_it_is_not_pickled_nor_copied(secret: ClientSecret) -> None:
    @dataclass
    class Holder:
        secret: ClientSecret

    for act in (pickle.dumps, copy.copy, copy.deepcopy, lambda it: asdict(Holder(it))):
        with pytest.raises(TypeError, match="a client secret is not pickled"):
            act(secret)


def test_it_has_no_dictionary_to_be_dumped(secret: ClientSecret) -> None:
    with pytest.raises(TypeError):
        vars(secret)


def test_structlog_does_not_write_it(secret: ClientSecret) -> None:
    for renderer in (structlog.processors.JSONRenderer(), structlog.dev.ConsoleRenderer(colors=False)):
        event = {"event": "x", "secret": secret, "nested": {"list": [secret], "tuple": (secret,)}}
        assert VALUE not in str(renderer(None, "info", dict(event)))
        assert VALUE not in str(renderer(None, "info", dict(scrub(None, "info", event))))


@pytest.mark.parametrize("as_json", [True, False])
def test_neither_our_logs_nor_a_librarys_write_it(
    secret: ClientSecret, as_json: bool, request: pytest.FixtureRequest
) -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    request.addfinalizer(lambda: (root.handlers.__setitem__(slice(None), before[0]), root.setLevel(before[1])))
    request.addfinalizer(structlog.reset_defaults)
    stream = io.StringIO()
    configure_logging(level="debug", as_json=as_json, stream=stream)
    structlog.get_logger().info("ours", secret=secret, text=f"it is {VALUE}", deep={"a": [VALUE]})
    logging.getLogger("some.library").warning("theirs %s %s", secret, VALUE)
    try:
        raise ValueError(f"with {VALUE}")
    except ValueError:
        structlog.get_logger().exception("ours, raised")
        logging.getLogger("some.library").exception("theirs, raised")
    written = stream.getvalue()
    assert written.count("ours") >= 2
    assert written.count("theirs") >= 2
    assert "_secret_" not in written


def test_a_traceback_does_not_show_it(secret: ClientSecret) -> None:
    def fail(_: ClientSecret) -> None:
        raise RuntimeError("no")

    try:
        fail(secret)
    except RuntimeError as error:
        told = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    assert "ClientSecret(***)" in told
    assert VALUE not in told.replace(f"VALUE = {VALUE!r}", "")
