"""The wire is the SDK without its objects: the same bytes go out, and the same errors come of the same answers."""

import asyncio
import gc
import gzip
import json
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import aiohttp
import pytest
import stripe
from hypothesis import example, given
from hypothesis import strategies as st

from tests.properties.strategies import tries
from worker.errors import AccountRefused, CallRefused, CallSystemic, CallTransient, CallUnknown, WorkerError
from worker.payment import CREATE_INTENT, Intent, Operation
from worker.stripe_errors import translate
from worker.stripe_gateway import API_VERSION, StripeGateway
from worker.stripe_wire import StripeWire, WireAnswer, encode_form

KEY = "sk_test_wire_key"
SECRET = "pi_1_secret_of_the_customer"
TIMEOUT_S = 10.0
PARAMS: dict[str, Any] = {
    "amount": 1250,
    "currency": "usd",
    "metadata": {"order_id": "o-1", "näme": "a b&c=d[e]%5B"},
    "automatic_payment_methods": {"enabled": True},
    "description": "Grüße, 50% + 'x' & ☃",
}
INTENT: dict[str, Any] = {
    "id": "pi_1",
    "object": "payment_intent",
    "status": "requires_payment_method",
    "amount": 1250,
    "currency": "usd",
    "livemode": False,
    "metadata": {"order_id": "o-1"},
    "client_secret": SECRET,
    "last_payment_error": None,
}
OPERATION = Operation("o-1", CREATE_INTENT, 1, "key-1", PARAMS, None, datetime(2026, 1, 1, tzinfo=UTC))


def http(status: int, body: bytes | object, **headers: str) -> bytes:
    """An answer as it stands on the wire. body: bytes, or what becomes JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = {"Request-Id": "req_1", "Content-Length": str(len(content))}
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status} Some Reason\r\n{head}\r\n".encode() + content


def error(status: int, *, headers: Mapping[str, str] | None = None, **fields: Any) -> bytes:
    return http(status, {"error": {"message": "Stripe's own words", **fields}}, **(headers or {}))


@dataclass
class Listener:
    """An HTTP server that keeps each request byte for byte and answers with bytes. None: it does not answer."""

    url: str = ""
    answer: Callable[[bytes], bytes | None] = lambda _: http(200, INTENT)
    then_closes: bool = False
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                request = head + await reader.readexactly(int(lengths[0].split(b":")[1]) if lengths else 0)
                self.requests.append(request)
                answer = self.answer(request)
                if answer is not None:
                    writer.write(answer)
                    await writer.drain()
                if self.then_closes:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()


@asynccontextmanager
async def listening() -> AsyncIterator[Listener]:
    listener = Listener()
    server = await asyncio.start_server(listener.serve, "127.0.0.1", 0)
    listener.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield listener
    server.close()


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    async with listening() as listener:
        yield listener


Post = Callable[..., Awaitable[Any]]


@dataclass
class Ways:
    """Both ways to the same address: post(params, idempotency_key=…, stripe_account=…)."""

    sdk: Post
    wire: Post


@asynccontextmanager
async def both_ways(base: str, *, timeout_s: float = TIMEOUT_S, version: str = API_VERSION) -> AsyncIterator[Ways]:
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    async with aiohttp.ClientSession(timeout=timeout) as one, aiohttp.ClientSession(timeout=timeout) as other:
        client = stripe.StripeClient(
            KEY,
            stripe_version=version,
            max_network_retries=0,
            http_client=stripe.AIOHTTPClient(timeout=timeout, session=one),
            base_addresses=dict.fromkeys(("api", "connect", "files", "meter_events"), base),  # type: ignore[arg-type]
        )
        wire = StripeWire(session=other, api_key=KEY, api_base=base, api_version=version)

        async def by_sdk(params: Any, **options: Any) -> Any:
            return await client.v1.payment_intents.create_async(params, options)  # type: ignore[arg-type]

        async def by_wire(params: Any, **options: Any) -> WireAnswer:
            return await wire.post("/v1/payment_intents", params, **options)

        yield Ways(by_sdk, by_wire)


@pytest.fixture(autouse=True)
def no_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stripe, "enable_telemetry", False)


@pytest.fixture
async def ways(listener: Listener) -> AsyncIterator[Ways]:
    async with both_ways(listener.url) as ways:
        yield ways


@asynccontextmanager
async def a_gateway(base: str, **changed: Any) -> AsyncIterator[StripeGateway]:
    options: dict[str, Any] = {"livemode": False, "timeout_s": TIMEOUT_S, "max_connections": 4, **changed}
    async with StripeGateway(api_key=KEY, api_base=base, **options) as gateway:
        yield gateway


@pytest.fixture
async def gateway(listener: Listener) -> AsyncIterator[StripeGateway]:
    async with a_gateway(listener.url) as gateway:
        yield gateway


async def raised_by(asked: Awaitable[Any]) -> Exception:
    try:
        answer = await asked
    except Exception as error:  # noqa: BLE001 - whichever it is, it is compared
        return error
    raise AssertionError(f"no error, but {answer!r}")


def told(error: BaseException | None) -> object:
    """All that there is to an error, as what can be compared."""
    if not isinstance(error, stripe.StripeError):
        return type(error), str(error)
    return {
        "type": type(error),
        "text": str(error),
        "cause": told(error.__cause__),
        "headers": dict(error.headers or {}),
        "error": error.error.to_dict() if error.error else None,
        "param": getattr(error, "param", None),
        "should_retry": getattr(error, "should_retry", None),
        **{
            name: getattr(error, name)
            for name in ("user_message", "http_body", "http_status", "json_body", "code", "request_id")
        },
    }


async def the_error_of_both(ways: Ways, key: str = "key-1") -> Exception:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the SDK leaves half-read answers to the garbage collector
        by_sdk = told(await raised_by(ways.sdk(PARAMS, idempotency_key=key)))
        gc.collect()
    by_wire = await raised_by(ways.wire(PARAMS, idempotency_key=key))
    assert told(by_wire) == by_sdk
    return by_wire


# --- what goes out ---


@pytest.mark.parametrize("account", [None, "", "acct_1"])
@pytest.mark.parametrize("params", [PARAMS, {}, {"amount": 1, "expand": ["a", "b"]}], ids=["many", "none", "few"])
async def test_the_request_is_the_sdks_byte_for_byte(
    params: dict[str, Any], account: str | None, ways: Ways, listener: Listener
) -> None:
    await ways.sdk(params, idempotency_key="key-1", stripe_account=account)
    await ways.wire(params, idempotency_key="key-1", stripe_account=account)
    by_sdk, by_wire = listener.requests
    assert by_wire == by_sdk
    head = by_wire.partition(b"\r\n\r\n")[0].lower()
    assert head.startswith(b"post /v1/payment_intents http/1.1\r\n")
    for line in (f"authorization: bearer {KEY}", "idempotency-key: key-1", f"stripe-version: {API_VERSION}"):
        assert f"\r\n{line}\r\n".encode() in head + b"\r\n"
    assert (b"stripe-account" in head) is bool(account)
    assert b"telemetry" not in head


async def test_the_gateway_sends_an_operation_as_the_sdk_would(
    listener: Listener, ways: Ways, gateway: StripeGateway
) -> None:
    await ways.sdk(PARAMS, idempotency_key="key-1")
    await gateway.create_intent(OPERATION)
    by_sdk, by_gateway = listener.requests
    assert by_gateway == by_sdk


async def test_the_version_is_ours_and_not_the_sdks(listener: Listener) -> None:
    async with both_ways(listener.url, version="2024-06-20") as ways:
        await ways.sdk(PARAMS, idempotency_key="key-1")
        await ways.wire(PARAMS, idempotency_key="key-1")
    by_sdk, by_wire = listener.requests
    assert by_wire == by_sdk
    assert b"\r\nStripe-Version: 2024-06-20\r\n" in by_wire


async def test_what_one_call_is_made_with_does_not_stay_for_the_next(ways: Ways, listener: Listener) -> None:
    await ways.wire({"amount": 1}, idempotency_key="key-1", stripe_account="acct_1")
    await ways.wire({"amount": 2}, idempotency_key="key-2")
    assert b"Stripe-Account: acct_1\r\n" in listener.requests[0]
    assert b"Stripe-Account" not in listener.requests[1]
    assert b"Idempotency-Key: key-2\r\n" in listener.requests[1]
    assert listener.requests[1].endswith(b"\r\n\r\namount=2")


class RecordingClient(stripe.HTTPClient):
    name = "recording"
    form: str

    def request(self, method: str, url: str, headers: Any, post_data: Any = None, **_: Any) -> Any:
        self.form = post_data
        return b"{}", 200, {}


RECORDING = RecordingClient()
CLIENT = stripe.StripeClient(KEY, http_client=RECORDING, max_network_retries=0)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.decimals()
    | NAMES
    | st.datetimes(datetime(1971, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - bounds
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3) | st.tuples(inner, inner),
    max_leaves=10,
)


@tries(300)
@given(params=st.dictionaries(NAMES, VALUES, max_size=5))
@example(params=PARAMS)
@example(params={"a": [{"b": [1, True, None]}, [2, {"c": "%5B"}]], "d": Decimal("1.50"), "e[]": ["x"], "f": {}})
def test_the_form_is_the_sdks(params: dict[str, Any]) -> None:
    CLIENT.raw_request("post", "/v1/payment_intents", metadata=params)
    assert encode_form({"metadata": params}) == RECORDING.form.encode()


# --- answers that are no success ---

HTML = b"<html><body>Bad Gateway</body></html>"
CARD: dict[str, Any] = {
    "type": "card_error",
    "code": "card_declined",
    "decline_code": "do_not_honor",
    "payment_intent": INTENT,
}
PACKED = gzip.compress(json.dumps({"error": CARD}).encode())
LIMITED = {"Stripe-Rate-Limited-Reason": "endpoint-rate"}
REPLAYED = {"Idempotent-Replayed": "true"}


@pytest.mark.parametrize(
    ("answer", "theirs", "ours"),
    [
        (error(400, type="invalid_request_error", param="amount"), stripe.InvalidRequestError, CallRefused),
        (error(400, type="idempotency_error"), stripe.IdempotencyError, CallUnknown),
        (error(400, code="rate_limit"), stripe.RateLimitError, CallTransient),
        (error(401), stripe.AuthenticationError, CallSystemic),
        (error(402, **CARD), stripe.CardError, CallRefused),
        (error(402, headers={"Stripe-Should-Retry": "true"}, **CARD), stripe.CardError, CallTransient),
        (error(403), stripe.PermissionError, CallSystemic),
        (error(404, code="resource_missing"), stripe.InvalidRequestError, CallRefused),
        (error(409, code="idempotency_key_in_use"), stripe.APIError, CallTransient),
        (error(429, code="lock_timeout"), stripe.RateLimitError, CallTransient),
        (error(429, headers=LIMITED), stripe.RateLimitError, CallTransient),
        (error(500, type="api_error"), stripe.APIError, CallUnknown),
        (error(500, headers=REPLAYED), stripe.APIError, CallUnknown),
        (error(503, headers={"Stripe-Should-Retry": "false"}), stripe.APIError, CallUnknown),
        (http(502, HTML, Content_Type="text/html"), stripe.APIError, CallUnknown),
        (http(402, HTML), stripe.APIError, CallUnknown),
        (http(401, b""), stripe.APIError, CallUnknown),
        (http(500, {"message": "no error in it"}), stripe.APIError, CallUnknown),
        (http(500, ["error"]), stripe.APIError, CallUnknown),
        (http(503, b"null"), stripe.APIError, CallUnknown),
        (http(304, b"").replace(b"Content-Length: 0\r\n", b""), stripe.APIError, CallUnknown),
        (http(402, PACKED, Content_Encoding="gzip"), stripe.CardError, CallRefused),
    ],
)  # fmt: skip
async def test_an_error_is_the_sdks_in_all_that_it_says(
    answer: bytes, theirs: type[stripe.StripeError], ours: type[WorkerError], ways: Ways, listener: Listener
) -> None:
    listener.answer = lambda _: answer
    error = await the_error_of_both(ways)
    assert type(error) is theirs
    assert type(translate(error)) is ours
    assert len(listener.requests) == 2, "each way asked once, and never again by itself"


async def test_errors_that_come_at_once_are_told_to_those_who_asked(ways: Ways, listener: Listener) -> None:
    def name_the_key(request: bytes) -> bytes:
        key = request.partition(b"Idempotency-Key: ")[2].partition(b"\r\n")[0].decode()
        return error(402, code=key, headers={"Request-Id": f"req_{key}"})

    listener.answer = name_the_key
    keys = [f"key-{number}" for number in range(20)]
    errors = await asyncio.gather(*(raised_by(ways.wire(PARAMS, idempotency_key=key)) for key in keys))
    assert [(error.code, error.request_id) for error in errors] == [(key, f"req_{key}") for key in keys]  # type: ignore[attr-defined]


async def test_connections_are_kept_through_errors(ways: Ways, listener: Listener) -> None:
    answers = iter([error(402), http(502, HTML), http(200, INTENT), http(200, b"not json")])
    listener.answer = lambda _: next(answers)
    await raised_by(ways.wire(PARAMS, idempotency_key="key-1"))
    await raised_by(ways.wire(PARAMS, idempotency_key="key-2"))
    await ways.wire(PARAMS, idempotency_key="key-3")
    await ways.wire(PARAMS, idempotency_key="key-4")
    assert len(listener.requests) == 4
    assert listener.connections == 1


# --- no answer, or a part of one ---


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 200 OK\r\nConte", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"],
    ids=["nothing", "half a head", "nonsense", "no length"],
)
async def test_a_connection_that_breaks_before_the_answer(answer: bytes, ways: Ways, listener: Listener) -> None:
    listener.answer, listener.then_closes = lambda _: answer, True
    error = await the_error_of_both(ways)
    assert isinstance(error, stripe.APIConnectionError)
    assert isinstance(translate(error), CallUnknown)


@pytest.mark.parametrize("status", [200, 402, 500])
async def test_a_body_that_is_cut_off(status: int, ways: Ways, listener: Listener) -> None:
    listener.answer, listener.then_closes = lambda _: http(status, INTENT)[:-10], True
    assert isinstance(await the_error_of_both(ways), aiohttp.ClientPayloadError)


@pytest.mark.parametrize("status", [200, 402])
async def test_a_body_that_is_packed_wrongly(status: int, ways: Ways, listener: Listener) -> None:
    listener.answer = lambda _: http(status, b"no gzip at all", Content_Encoding="gzip")
    assert isinstance(await the_error_of_both(ways), aiohttp.ClientPayloadError)


async def test_no_connection(listener: Listener) -> None:
    async with listening() as gone:
        base = gone.url
    async with both_ways(base) as ways:
        error = await the_error_of_both(ways)
    assert isinstance(error, stripe.APIConnectionError)
    assert str(translate(error)) == "no connection to Stripe"
    assert isinstance(translate(error), CallTransient)


async def test_no_answer_in_time(listener: Listener) -> None:
    listener.answer = lambda _: None
    async with both_ways(listener.url, timeout_s=0.2) as ways:
        error = await the_error_of_both(ways)
    assert isinstance(error, stripe.APIConnectionError)
    assert isinstance(error.__cause__, TimeoutError)
    assert isinstance(translate(error), CallUnknown)


async def test_no_end_of_the_answer_in_time(listener: Listener) -> None:
    listener.answer = lambda _: http(200, INTENT)[:-10]
    async with both_ways(listener.url, timeout_s=1.0) as ways:
        assert type(await the_error_of_both(ways)) is TimeoutError


async def test_a_key_that_no_header_can_carry_is_the_sdks_error_too(ways: Ways, listener: Listener) -> None:
    assert isinstance(await the_error_of_both(ways, key="key\r\nX: y"), stripe.APIConnectionError)
    assert not listener.requests


async def test_being_stopped_is_no_error_and_ends_the_connection(ways: Ways, listener: Listener) -> None:
    answering = asyncio.Event()

    def half(_: bytes) -> bytes:
        answering.set()
        return http(200, INTENT)[:-10]

    listener.answer = half
    asked = asyncio.ensure_future(ways.wire(PARAMS, idempotency_key="key-1"))
    await asyncio.wait_for(answering.wait(), TIMEOUT_S)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    listener.answer = lambda _: http(200, INTENT)
    assert (await ways.wire(PARAMS, idempotency_key="key-1")).status == 200
    assert listener.connections == 2, "half an answer is not read as the next one's"


# --- elsewhere ---


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_followed_as_the_sdk_follows_it(status: int, ways: Ways, listener: Listener) -> None:
    async with listening() as elsewhere:
        listener.answer = lambda _: http(status, b"", Location=f"{elsewhere.url}/there")
        await ways.sdk(PARAMS, idempotency_key="key-1")
        await ways.wire(PARAMS, idempotency_key="key-1")
    by_sdk, by_wire = elsewhere.requests
    assert by_wire == by_sdk
    assert KEY.encode() not in by_wire, "another server gets no key"


async def test_redirects_without_end(ways: Ways, listener: Listener) -> None:
    listener.answer = lambda _: http(307, b"", Location="/v1/payment_intents")
    error = await the_error_of_both(ways)
    assert isinstance(error.__cause__, aiohttp.TooManyRedirects)
    first, *others = listener.requests
    assert set(others) == {first}


async def test_no_proxy_of_the_environment_is_asked(
    ways: Ways, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with listening() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        await ways.sdk(PARAMS, idempotency_key="key-1")
        await ways.wire(PARAMS, idempotency_key="key-1")
        assert not proxy.requests
    assert len(listener.requests) == 2


# --- what the gateway makes of it ---


@pytest.mark.parametrize("packed", [False, True])
async def test_an_intent_is_read_with_its_secret_and_its_request(
    packed: bool, gateway: StripeGateway, listener: Listener
) -> None:
    body = json.dumps(INTENT).encode()
    packed_answer = http(200, gzip.compress(body), Content_Encoding="gzip")
    listener.answer = lambda _: packed_answer if packed else http(200, body)
    intent, secret = await gateway.create_intent(OPERATION)
    assert intent == Intent("pi_1", "requires_payment_method", 1250, "usd", False, "o-1", "req_1")
    assert secret is not None
    assert secret.reveal() == SECRET


@pytest.mark.parametrize(
    "body",
    [
        json.dumps(INTENT).encode()[:-1],
        HTML,
        b"",
        b"null",
        b"[]",
        b'"pi_1"',
        b"{}",
        "Grüße".encode("latin-1"),
        json.dumps([INTENT]).encode(),
        json.dumps(INTENT | {"amount": "1250"}).encode(),
        b"[" * 100_000,
    ],
)
async def test_an_answer_that_is_no_intent_is_strange_and_not_told(
    body: bytes, gateway: StripeGateway, listener: Listener
) -> None:
    listener.answer = lambda _: http(200, body)
    with pytest.raises(CallUnknown) as strange:
        await gateway.create_intent(OPERATION)
    assert strange.value.reason == "strange_answer"
    assert strange.value.may_ask_again
    assert SECRET not in repr(strange.value)


@pytest.mark.parametrize("body", ["Grüße".encode("latin-1"), b'{"error": "bad gateway"}', b'{"error": []}'])
async def test_a_proxys_answer_that_the_sdk_falls_over_is_strange(
    body: bytes, gateway: StripeGateway, listener: Listener
) -> None:
    listener.answer = lambda _: http(502, body)
    for asked in (gateway.create_intent(OPERATION), gateway.fetch_intent("pi_1", None)):
        with pytest.raises(CallUnknown) as strange:
            await asked
        assert strange.value.reason == "strange_answer"


async def test_an_account_that_is_refused_is_its_orders_fault(gateway: StripeGateway, listener: Listener) -> None:
    listener.answer = lambda _: error(403, code="account_invalid")
    operation = Operation("o-1", CREATE_INTENT, 1, "key-1", PARAMS, "acct_1", OPERATION.first_asked_at)
    with pytest.raises(AccountRefused, match="acct_1"):
        await gateway.create_intent(operation)


async def test_each_call_is_observed_once_by_what_came_of_it(listener: Listener) -> None:
    observed: list[tuple[str, str]] = []
    answers = [http(200, INTENT)[:-10], http(502, HTML), error(402, **CARD), http(200, INTENT)]

    def answer(_: bytes) -> bytes:
        listener.then_closes = len(answers) == 1
        return answers.pop()

    listener.answer = answer
    async with a_gateway(listener.url, observe=lambda call, result, _: observed.append((call, result))) as gateway:
        await gateway.create_intent(OPERATION)
        for _ in range(3):
            assert isinstance(await raised_by(gateway.create_intent(OPERATION)), WorkerError)
    assert observed == [
        ("create_intent", result) for result in ("answered", "CallRefused", "CallUnknown", "CallUnknown")
    ]


@pytest.mark.parametrize(
    "answer",
    [error(402, **CARD), http(402, {"error": CARD})[:-10], http(500, json.dumps(INTENT)[:-1].encode()), error(401)],
)
async def test_no_error_of_ours_tells_a_secret(answer: bytes, listener: Listener, gateway: StripeGateway) -> None:
    listener.answer, listener.then_closes = lambda _: answer, True
    error = await raised_by(gateway.create_intent(OPERATION))
    assert isinstance(error, WorkerError)
    for text in (str(error), repr(error), repr(vars(error))):
        assert SECRET not in text
        assert KEY not in text


def test_an_answer_prints_nothing_of_itself() -> None:
    assert SECRET not in repr(WireAnswer(200, {}, json.dumps(INTENT).encode()))
