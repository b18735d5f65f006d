"""The Stripe door: the only module that knows the stripe package. Asks, checks the answer, names the error.

Facts it stands on (https://docs.stripe.com/api/idempotent_requests, https://docs.stripe.com/error-low-level, and
the source of stripe-python 16): the SDK's own retries would hide attempts and hold a slot while they sleep, so they
are off; AIOHTTPClient lets errors of the body's reading through raw; a 409 comes as APIError.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from email.utils import parsedate_to_datetime
from functools import partial
from types import ModuleType, TracebackType
from typing import Any, Final, Self

import aiohttp
import stripe
from pydantic import ConfigDict, TypeAdapter, ValidationError
from stripe import _util
from stripe.params import _payment_intent_create_params as create_params
from typing_extensions import is_typeddict

from worker.client_secret import ClientSecret
from worker.errors import (
    AccountRefused,
    AnswerMismatch,
    CallUnknown,
    ParametersRefused,
    Refusal,
    RightMissing,
)
from worker.payment import Intent, Operation, Payment
from worker.payment_life import Settlement
from worker.stripe_errors import translate
from worker.stripe_event import (
    DISPUTE,
    PAYMENT_INTENT,
    REFUND,
    ShownPayment,
    StripeEvent,
    read_stripe_event,
    shown_intent,
    shown_object,
    shown_payment,
    shown_refund,
)

# Frozen beside the parameters: an answer is read as this version spells it, whatever the account's default.
API_VERSION: Final = "2026-10-28.endive"
CONNECT_TIMEOUT_S: Final = 5
LIST_PAGE: Final = 100
# Calls that no order needs: a key without the right to them stops commands, or a look at disputes, and nothing else.
OF_NO_ORDER: Final = frozenset({"cancel", "capture", "refund", "list_refunds", "list_disputes", "fetch_dispute"})


class StripeGateway:
    """Asks Stripe. Build it inside the running loop; close it as an async context manager.

    observe: called once per call with (call, result word, seconds) for the metrics.
    """

    def __init__(
        self,
        *,
        api_key: str,
        api_base: str | None,
        livemode: bool,
        timeout_s: float,
        max_connections: int,
        observe: Callable[[str, str, float], None] = lambda *_: None,
    ) -> None:
        stripe.enable_telemetry = False  # it would send the last request's id and time along, mixed between tasks
        _util.STRIPE_LOG = None  # a shell with STRIPE_LOG=debug would have it print whole answers, secrets included
        self._livemode = livemode
        self._create_params = _strict_adapter(create_params)
        self._observe = observe
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=max_connections, ssl=True),
            timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S),
            auto_decompress=True,
        )
        self._http = stripe.AIOHTTPClient(timeout=self._session.timeout, session=self._session)
        bases: Any = {}
        if api_base:  # for all four: an address left unset would still be Stripe's own host
            bases = {"api": api_base, "connect": api_base, "files": api_base, "meter_events": api_base}
        self._client = stripe.StripeClient(
            api_key,
            stripe_version=API_VERSION,
            max_network_retries=0,
            http_client=self._http,
            base_addresses=bases,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        await self._session.close()

    async def create_intent(self, operation: Operation) -> tuple[Intent, ClientSecret | None]:
        """Create the PaymentIntent of an operation, or have the first answer to its key again.

        Raises CallRefused (no, and never), CallTransient (nothing happened), CallUnknown (it may have happened),
        CallSystemic (our key or account), AccountRefused (the order's), AnswerMismatch (made for something else than
        asked).
        """
        options: Any = {"idempotency_key": operation.idempotency_key, **_on(operation.stripe_account)}
        answer = await self._ask(
            "create_intent",
            lambda: self._client.v1.payment_intents.create_async(dict(operation.params), options),  # type: ignore[arg-type]
            stripe_account=operation.stripe_account,
        )
        intent = _read_intent(answer)
        self.check_intent(operation, intent)
        return intent, _secret_of(answer)

    async def fetch_intent(self, payment_id: str, stripe_account: str | None) -> tuple[Intent, ClientSecret | None]:
        """The intent as it is now, and its secret. Raises the same errors as create_intent."""
        answer = await self._ask(
            "fetch_intent",
            lambda: self._client.v1.payment_intents.retrieve_async(payment_id, None, _on(stripe_account)),
            stripe_account=stripe_account,
        )
        return _read_intent(answer), _secret_of(answer)

    async def search_intents(self, order_id: str, stripe_account: str | None) -> list[str]:
        """Ids of intents that say they are the order's: a hint only, for Stripe's index lags behind.

        Source: https://docs.stripe.com/search. Raises the same errors as create_intent.
        """
        quoted = order_id.replace("\\", "\\\\").replace("'", "\\'")
        answer = await self._ask(
            "search_intents",
            lambda: self._client.v1.payment_intents.search_async(
                {"query": f"metadata['order_id']:'{quoted}'", "limit": 10}, _on(stripe_account)
            ),
            stripe_account=stripe_account,
        )
        return [str(found.id) for found in answer.data]

    async def list_intents(
        self,
        *,
        created_from: int,
        created_to: int,
        customer: str | None,
        stripe_account: str | None,
        after: str | None = None,
    ) -> tuple[list[Intent], str | None]:
        """A page of the intents created in a time (seconds since the epoch), and where the next page starts.

        What was created before is in it: https://docs.stripe.com/api/payment_intents/list reads its own writes. Raises
        the same errors as create_intent.
        """
        asked: Any = {"created": {"gte": created_from, "lte": created_to}, "limit": LIST_PAGE}
        if customer:
            asked["customer"] = customer
        if after:
            asked["starting_after"] = after
        page = await self._ask(
            "list_intents",
            lambda: self._client.v1.payment_intents.list_async(asked, _on(stripe_account)),
            stripe_account=stripe_account,
        )
        found = [_read_intent(each) for each in page.data]
        return found, found[-1].payment_id if found and page.has_more else None

    async def fetch_settlement(self, transaction_id: str, stripe_account: str | None) -> Settlement:
        """Fee and net of a balance transaction. Raises the same errors as create_intent."""
        answer = await self._ask(
            "fetch_settlement",
            lambda: self._client.v1.balance_transactions.retrieve_async(transaction_id, None, _on(stripe_account)),
            stripe_account=stripe_account,
        )
        try:
            rate = getattr(answer, "exchange_rate", None)
            return Settlement(
                balance_transaction_id=str(answer.id),
                fee_minor=int(answer.fee),
                net_minor=int(answer.net),
                currency=str(answer.currency),
                exchange_rate=None if rate is None else f"{Decimal(str(rate)):f}",
            )
        except (AttributeError, TypeError, ValueError) as error:
            raise CallUnknown("the answer is no balance transaction", reason="strange_answer") from error

    async def show_payment(self, payment: Payment, *, with_refunds: bool, now: datetime) -> Sequence[StripeEvent]:
        """What Stripe shows of a payment now, as events: its intent, and its refunds. Raises as create_intent.

        now: counts where Stripe does not say its own time.
        """
        payment_id, account = str(payment.payment_id), payment.stripe_account
        answer = await self._ask(
            "fetch_intent",
            lambda: self._client.v1.payment_intents.retrieve_async(payment_id, None, _on(account)),
            stripe_account=account,
        )
        shown, after = [shown_intent(answer.to_dict(), now=_said_at(answer, now))], None
        while with_refunds:
            asked: Any = {"payment_intent": payment_id, "limit": LIST_PAGE}
            page = await self._list_refunds(asked | ({"starting_after": after} if after else {}), account)
            shown += [shown_refund(each.to_dict(), now=_said_at(page, now)) for each in page.data]
            if not page.has_more:
                break
            after = page.data[-1].id
        return shown

    async def shown_payments(self, *, since: datetime) -> AsyncIterator[Sequence[ShownPayment]]:
        """The payments of a time as Stripe shows them, page by page, the newest first. Raises as create_intent."""
        asked: Any = {"created": {"gte": int(since.timestamp())}, "limit": LIST_PAGE, "expand": ["data.latest_charge"]}
        while True:
            page = await self._ask("list_intents", partial(self._client.v1.payment_intents.list_async, asked))
            now = _said_at(page, datetime.now(UTC))
            yield [shown_payment(each.to_dict(), now=now) for each in page.data]
            if not page.has_more:
                return
            asked = asked | {"starting_after": page.data[-1].id}

    async def shown_payment(self, payment: Payment) -> ShownPayment:
        """One payment as Stripe shows it, of whichever account. Raises as create_intent."""
        answer = await self._ask(
            "fetch_intent",
            lambda: self._client.v1.payment_intents.retrieve_async(
                str(payment.payment_id), {"expand": ["latest_charge"]}, _on(payment.stripe_account)
            ),
            stripe_account=payment.stripe_account,
        )
        return shown_payment(answer.to_dict(), now=_said_at(answer, datetime.now(UTC)))

    async def undelivered_events(self, *, since: datetime) -> AsyncIterator[StripeEvent]:
        """Events that Stripe's webhooks could not deliver, the newest first. Raises as create_intent.

        Source: https://docs.stripe.com/webhooks/process-undelivered-events.
        """
        asked: Any = {"created": {"gte": int(since.timestamp())}, "delivery_success": False, "limit": LIST_PAGE}
        while True:
            page = await self._ask("list_events", partial(self._client.v1.events.list_async, asked))
            for each in page.data:
                yield read_stripe_event(each.to_dict())
            if not page.has_more:
                return
            asked = asked | {"starting_after": page.data[-1].id}

    async def _list_refunds(self, asked: Any, stripe_account: str | None) -> Any:
        return await self._ask(
            "list_refunds",
            lambda: self._client.v1.refunds.list_async(asked, _on(stripe_account)),
            stripe_account=stripe_account,
        )

    async def change_payment(
        self, operation: Operation, payment: Payment, *, now: datetime
    ) -> tuple[StripeEvent, str | None]:
        """Cancel, capture or refund, as the operation says, or have the first answer to its key again.

        What it came to, as an event, and Stripe's id of the request. Raises the same errors as create_intent.
        """
        options: Any = {"idempotency_key": operation.idempotency_key, **_on(operation.stripe_account)}
        payment_id, params, v1 = str(payment.payment_id), dict(operation.params), self._client.v1
        verb = "refund" if "payment_intent" in params else operation.kind.partition(".")[0]
        asks: dict[str, Callable[[], Awaitable[Any]]] = {
            "cancel": lambda: v1.payment_intents.cancel_async(payment_id, params, options),  # type: ignore[arg-type]
            "capture": lambda: v1.payment_intents.capture_async(payment_id, params, options),  # type: ignore[arg-type]
            "refund": lambda: v1.refunds.create_async(params, options),  # type: ignore[arg-type]
        }
        answer = await self._ask(verb, asks[verb], stripe_account=operation.stripe_account)
        show = shown_refund if verb == "refund" else shown_intent
        return show(answer.to_dict(), now=_said_at(answer, now)), _request_id_of(answer)

    async def show(self, event: StripeEvent, stripe_account: str | None, *, now: datetime) -> StripeEvent:
        """The intent or the refund that an event is about, as this version of the API reads it now.

        Raises the same errors as create_intent.
        """
        shown = await self.show_object(str(event.family), str(event.object_id), stripe_account, now=now)
        return shown[-1]

    async def show_object(
        self, family: str, object_id: str, stripe_account: str | None, *, now: datetime
    ) -> Sequence[StripeEvent]:
        """An intent, a refund or a dispute as Stripe shows it, as events, the newest last. Raises as create_intent."""
        answer = await self._ask(
            f"fetch_{family}",
            lambda: self._door(family).retrieve_async(object_id, None, _on(stripe_account)),
            stripe_account=stripe_account,
        )
        return shown_object(family, answer.to_dict(), now=_said_at(answer, now))

    async def shown_objects(self, family: str, *, since: datetime) -> AsyncIterator[Sequence[Sequence[StripeEvent]]]:
        """The refunds or disputes made in a time, page by page, each as show_object has it. Raises as create_intent."""
        asked: Any = {"created": {"gte": int(since.timestamp())}, "limit": LIST_PAGE}
        while True:
            page = await self._ask(f"list_{family}s", partial(self._door(family).list_async, asked))
            now = _said_at(page, datetime.now(UTC))
            yield [shown_object(family, each.to_dict(), now=now) for each in page.data]
            if not page.has_more:
                return
            asked = asked | {"starting_after": page.data[-1].id}

    def _door(self, family: str) -> Any:
        v1 = self._client.v1
        return {PAYMENT_INTENT: v1.payment_intents, REFUND: v1.refunds, DISPUTE: v1.disputes}[family]

    async def probe(self) -> None:
        """Ask for one intent: shows that the key is good and Stripe is there. Raises as create_intent."""
        await self._ask("probe", lambda: self._client.v1.payment_intents.list_async({"limit": 1}))

    async def _ask(self, call: str, ask: Callable[[], Awaitable[Any]], *, stripe_account: str | None = None) -> Any:
        clock = asyncio.get_running_loop().time
        started, result = clock(), "answered"
        try:
            return await ask()
        except stripe.StripeError as error:
            ours = translate(error)
            if stripe_account and isinstance(error, stripe.PermissionError):
                ours = AccountRefused(f"stripe_account {stripe_account}: {ours}")
            elif call in OF_NO_ORDER and isinstance(error, stripe.PermissionError):
                ours = RightMissing(f"{call}: {ours}")
            result = type(ours).__name__
            raise ours from error
        except (TimeoutError, aiohttp.ClientError) as error:
            result = "CallUnknown"
            raise CallUnknown(f"the answer was cut off: {type(error).__name__}", reason="answer_lost") from error
        finally:
            self._observe(call, result, clock() - started)

    @property
    def livemode(self) -> bool:
        """Of our key: real money, or test mode."""
        return self._livemode

    def check_params(self, params: Mapping[str, Any]) -> None:
        """Hold parameters against the SDK's own types: names, nesting, kinds. Raises ParametersRefused.

        The SDK sends whatever it is given; Stripe would say no only after the key is used up.
        """
        try:
            self._create_params.validate_python(params)
        except ValidationError as error:
            faults = error.errors(include_input=False, include_url=False, include_context=False)
            raise ParametersRefused("; ".join(f"{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in faults)) from None

    def check_intent(self, operation: Operation, intent: Intent) -> None:
        """Hold an intent against what was asked for. Raises AnswerMismatch."""
        params = operation.params
        pairs = {
            "amount": (params["amount"], intent.amount_minor),
            "currency": (params["currency"], intent.currency),
            "livemode": (self._livemode, intent.livemode),
            "order_id": (operation.order_id, intent.order_id),
        }
        differences = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
        if differences:
            raise AnswerMismatch(differences, payment_id=intent.payment_id)


def _strict_adapter(module: ModuleType) -> TypeAdapter[Any]:
    """The SDK's TypedDict for creating an intent as a validator that forbids what the type does not name.

    The SDK writes its annotations as text and leaves two of the names in it unimported.
    """
    names = {**vars(module), "Mapping": Mapping, "StripeContext": stripe.StripeContext}
    for declared in vars(module).values():
        if is_typeddict(declared):
            declared.__pydantic_config__ = ConfigDict(extra="forbid", arbitrary_types_allowed=True, strict=True)
    adapter: TypeAdapter[Any] = TypeAdapter(module.PaymentIntentCreateParams)
    adapter.rebuild(_types_namespace=names)
    return adapter


def _said_at(answer: Any, now: datetime) -> datetime:
    """Stripe's own time of an answer, the clock that its events are stamped by; now where it does not say."""
    try:
        moment = parsedate_to_datetime(answer.last_response.headers["Date"])
    except (AttributeError, KeyError, TypeError, ValueError):
        return now
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _read_intent(answer: Any) -> Intent:
    """Raises CallUnknown for an answer that is no PaymentIntent: some proxy's, perhaps."""
    try:
        return Intent(
            payment_id=str(answer.id),
            status=str(answer.status),
            amount_minor=int(answer.amount),
            currency=str(answer.currency),
            livemode=bool(answer.livemode),
            order_id=answer.metadata["order_id"] if "order_id" in answer.metadata else None,  # noqa: SIM401 - no dict
            request_id=_request_id_of(answer),
            declined=_declined(answer),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CallUnknown("the answer is not a PaymentIntent", reason="strange_answer") from error


def _declined(answer: Any) -> Refusal | None:
    """What the intent's last confirmation was refused with, as the call that asked for it would have been told."""
    body = getattr(answer, "last_payment_error", None)
    if body is None or answer.status != "requires_payment_method":
        return None
    return Refusal(
        http_status=402,
        code=getattr(body, "code", None),
        decline_code=getattr(body, "decline_code", None),
        advice_code=getattr(body, "advice_code", None),
        message=str(getattr(body, "message", None) or "")[:500],
        payment_id=str(answer.id),
        payment_status=str(answer.status),
        livemode=bool(answer.livemode),
    )


def _request_id_of(answer: Any) -> str | None:
    return answer.last_response.request_id if answer.last_response else None


def _on(stripe_account: str | None) -> Any:
    return {"stripe_account": stripe_account} if stripe_account else {}


def _secret_of(answer: Any) -> ClientSecret | None:
    secret = getattr(answer, "client_secret", None)
    return ClientSecret(secret) if isinstance(secret, str) else None
