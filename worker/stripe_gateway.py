"""The Stripe door: asks, checks the answer, names the error.

Facts it stands on (https://docs.stripe.com/api/idempotent_requests, https://docs.stripe.com/error-low-level, and
the source of stripe-python 16): the SDK's own retries would hide attempts and hold a slot while they sleep, so they
are off; AIOHTTPClient lets errors of the body's reading through raw; a 409 comes as APIError.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import aiohttp
import stripe
from stripe import _util

from worker.client_secret import ClientSecret
from worker.errors import (
    AccountRefused,
    AnswerMismatch,
    CallUnknown,
    RightMissing,
)
from worker.payment import Intent, Operation, Payment
from worker.payment_life import Settlement
from worker.stripe_answer import StripeAnswer, read_body, read_intent, read_page, read_secret, read_settlement
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
from worker.stripe_params import CreateParams
from worker.stripe_wire import StripeWire

Answered = TypeVar("Answered")

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
        self._params_of_create = CreateParams()
        self._observe = observe
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=max_connections, ssl=True),
            timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S),
            auto_decompress=True,
        )
        bases: Any = {}
        if api_base:  # for all four: an address left unset would still be Stripe's own host
            bases = {"api": api_base, "connect": api_base, "files": api_base, "meter_events": api_base}
        self._v1 = stripe.StripeClient(
            api_key,
            stripe_version=API_VERSION,
            max_network_retries=0,
            http_client=stripe.AIOHTTPClient(timeout=self._session.timeout, session=self._session),
            base_addresses=bases,
        ).v1
        self._wire = StripeWire(session=self._session, api_key=api_key, api_base=api_base, api_version=API_VERSION)

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
        received = await self._ask(
            "create_intent",
            lambda: self._wire.post(
                "/v1/payment_intents",
                operation.params,
                idempotency_key=operation.idempotency_key,
                stripe_account=operation.stripe_account,
            ),
            stripe_account=operation.stripe_account,
        )
        answer = StripeAnswer(read_body(received.body), received.headers)
        intent = read_intent(answer.body, answer.request_id)
        self.check_intent(operation, intent)
        return intent, read_secret(answer.body)

    async def fetch_intent(self, payment_id: str, stripe_account: str | None) -> tuple[Intent, ClientSecret | None]:
        """The intent as it is now, and its secret. Raises the same errors as create_intent."""
        answer = await self._fetch_intent(payment_id, stripe_account)
        return read_intent(answer.body, answer.request_id), read_secret(answer.body)

    async def search_intents(self, order_id: str, stripe_account: str | None) -> list[str]:
        """Ids of intents that say they are the order's: a hint only, for Stripe's index lags behind.

        Source: https://docs.stripe.com/search. Raises the same errors as create_intent.
        """
        quoted = order_id.replace("\\", "\\\\").replace("'", "\\'")
        asked = {"query": f"metadata['order_id']:'{quoted}'", "limit": 10}
        search = self._v1.payment_intents.search_async
        answer = await self._ask_sdk("search_intents", search, asked, stripe_account=stripe_account)
        return [found["id"] for found in read_page(answer.body)[0]]

    async def list_intents(
        self,
        *,
        created_from: int,
        created_to: int,
        customer: str | None,
        stripe_account: str | None,
        after: str | None = None,
    ) -> tuple[list[Intent], str | None, datetime | None]:
        """A page of the intents created in a time (seconds since the epoch), where the next one starts, Stripe's time.

        What was created before is in it: https://docs.stripe.com/api/payment_intents/list reads its own writes. Raises
        the same errors as create_intent.
        """
        asked: dict[str, Any] = {"created": {"gte": created_from, "lte": created_to}, "limit": LIST_PAGE}
        if customer:
            asked["customer"] = customer
        if after:
            asked["starting_after"] = after
        list_them = self._v1.payment_intents.list_async
        page = await self._ask_sdk("list_intents", list_them, asked, stripe_account=stripe_account)
        found, after = read_page(page.body)
        return [read_intent(each) for each in found], after, page.said_at(None)

    async def fetch_settlement(self, transaction_id: str, stripe_account: str | None) -> Settlement:
        """Fee and net of a balance transaction. Raises the same errors as create_intent."""
        retrieve = self._v1.balance_transactions.retrieve_async
        answer = await self._ask_sdk("fetch_settlement", retrieve, transaction_id, None, stripe_account=stripe_account)
        return read_settlement(answer.body)

    async def show_payment(self, payment: Payment, *, with_refunds: bool, now: datetime) -> Sequence[StripeEvent]:
        """What Stripe shows of a payment now, as events: its intent, and its refunds. Raises as create_intent.

        now: counts where Stripe does not say its own time.
        """
        payment_id, account = str(payment.payment_id), payment.stripe_account
        answer = await self._fetch_intent(payment_id, account)
        shown = [shown_intent(answer.body, now=answer.said_at(now))]
        if with_refunds:
            asked = {"payment_intent": payment_id}
            async for page, found in self._pages("list_refunds", self._v1.refunds.list_async, asked, account):
                shown += [shown_refund(each, now=page.said_at(now)) for each in found]
        return shown

    async def shown_payments(self, *, since: datetime) -> AsyncIterator[Sequence[ShownPayment]]:
        """The payments of a time as Stripe shows them, page by page, the newest first. Raises as create_intent."""
        asked = {"created": {"gte": int(since.timestamp())}, "expand": ["data.latest_charge"]}
        async for page, found in self._pages("list_intents", self._v1.payment_intents.list_async, asked):
            now = page.said_at(datetime.now(UTC))
            yield [shown_payment(each, now=now) for each in found]

    async def shown_payment(self, payment: Payment) -> ShownPayment:
        """One payment as Stripe shows it, of whichever account. Raises as create_intent."""
        with_charge = {"expand": ["latest_charge"]}
        answer = await self._fetch_intent(str(payment.payment_id), payment.stripe_account, with_charge)
        return shown_payment(answer.body, now=answer.said_at(datetime.now(UTC)))

    async def undelivered_events(self, *, since: datetime) -> AsyncIterator[StripeEvent]:
        """Events that Stripe's webhooks could not deliver, the newest first. Raises as create_intent.

        Source: https://docs.stripe.com/webhooks/process-undelivered-events.
        """
        asked = {"created": {"gte": int(since.timestamp())}, "delivery_success": False}
        async for _, found in self._pages("list_events", self._v1.events.list_async, asked):
            for each in found:
                yield read_stripe_event(each)

    async def change_payment(
        self, operation: Operation, payment: Payment, *, now: datetime
    ) -> tuple[StripeEvent, str | None]:
        """Cancel, capture or refund, as the operation says, or have the first answer to its key again.

        What it came to, as an event, and Stripe's id of the request. Raises the same errors as create_intent.
        """
        params, v1 = dict(operation.params), self._v1
        verb = "refund" if "payment_intent" in params else operation.kind.partition(".")[0]
        asks: dict[str, Callable[..., Awaitable[Any]]] = {
            "cancel": partial(v1.payment_intents.cancel_async, str(payment.payment_id)),
            "capture": partial(v1.payment_intents.capture_async, str(payment.payment_id)),
            "refund": v1.refunds.create_async,
        }
        answer = await self._ask_sdk(
            verb,
            asks[verb],
            params,
            stripe_account=operation.stripe_account,
            idempotency_key=operation.idempotency_key,
        )
        show = shown_refund if verb == "refund" else shown_intent
        return show(answer.body, now=answer.said_at(now)), answer.request_id

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
        retrieve = self._door(family).retrieve_async
        answer = await self._ask_sdk(f"fetch_{family}", retrieve, object_id, None, stripe_account=stripe_account)
        return shown_object(family, answer.body, now=answer.said_at(now))

    async def shown_objects(self, family: str, *, since: datetime) -> AsyncIterator[Sequence[Sequence[StripeEvent]]]:
        """The refunds or disputes made in a time, page by page, each as show_object has it. Raises as create_intent."""
        asked = {"created": {"gte": int(since.timestamp())}}
        async for page, found in self._pages(f"list_{family}s", self._door(family).list_async, asked):
            now = page.said_at(datetime.now(UTC))
            yield [shown_object(family, each, now=now) for each in found]

    async def probe(self) -> None:
        """Ask for one intent: shows that the key is good and Stripe is there. Raises as create_intent."""
        await self._ask_sdk("probe", self._v1.payment_intents.list_async, {"limit": 1})

    @property
    def livemode(self) -> bool:
        """Of our key: real money, or test mode."""
        return self._livemode

    def check_params(self, params: Mapping[str, Any]) -> None:
        """Hold parameters against the SDK's own types: names, nesting, kinds. Raises ParametersRefused.

        The SDK sends whatever it is given; Stripe would say no only after the key is used up.
        """
        self._params_of_create.check(params)

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

    def _door(self, family: str) -> Any:
        v1 = self._v1
        return {PAYMENT_INTENT: v1.payment_intents, REFUND: v1.refunds, DISPUTE: v1.disputes}[family]

    async def _fetch_intent(self, payment_id: str, stripe_account: str | None, params: Any = None) -> StripeAnswer:
        retrieve = self._v1.payment_intents.retrieve_async
        return await self._ask_sdk("fetch_intent", retrieve, payment_id, params, stripe_account=stripe_account)

    async def _pages(
        self,
        call: str,
        list_them: Callable[..., Awaitable[Any]],
        asked: Mapping[str, Any],
        stripe_account: str | None = None,
    ) -> AsyncIterator[tuple[StripeAnswer, Sequence[Mapping[str, Any]]]]:
        """Each page of a list, and the objects on it."""
        after: str | None = None
        while True:
            params = {**asked, "limit": LIST_PAGE, **({"starting_after": after} if after else {})}
            page = await self._ask_sdk(call, list_them, params, stripe_account=stripe_account)
            found, after = read_page(page.body)
            yield page, found
            if after is None:
                return

    async def _ask_sdk(
        self,
        call: str,
        method: Callable[..., Awaitable[Any]],
        *asked: Any,
        stripe_account: str | None = None,
        idempotency_key: str | None = None,
    ) -> StripeAnswer:
        """Have a method of the SDK's ask, with its own arguments in asked."""
        options = {"stripe_account": stripe_account, "idempotency_key": idempotency_key}
        answer = await self._ask(call, lambda: method(*asked, options), stripe_account=stripe_account)
        if not isinstance(answer, stripe.StripeObject) or answer.last_response is None:
            raise CallUnknown("the answer is no object", reason="strange_answer")
        return StripeAnswer(answer.to_dict(), answer.last_response.headers)

    async def _ask(
        self, call: str, ask: Callable[[], Awaitable[Answered]], *, stripe_account: str | None = None
    ) -> Answered:
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
        except (AttributeError, UnicodeDecodeError) as error:  # the SDK falls over a proxy's {"error": "bad gateway"}
            result = "CallUnknown"
            raise CallUnknown(f"no answer of Stripe's: {type(error).__name__}", reason="strange_answer") from error
        finally:
            self._observe(call, result, clock() - started)
