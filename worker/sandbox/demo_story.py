"""The story of the demo: orders become payments, the worker is killed in the middle of one, and what came of it."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final

from schemas import OrderCreatedData
from worker.sandbox.demo_payment_life import play_life
from worker.sandbox.demo_screen import Screen
from worker.sandbox.demo_services import FulfilmentService, OrderService
from worker.sandbox.demo_stage import STRIPE, Stage, connect, count_messages, letters_are_taken_in
from worker.sandbox.demo_verdict import PlacedOrder, PlayedFact, Sighting, judge, was_asked_again
from worker.sandbox.demo_wait import WAIT_S, wait_for_count
from worker.sandbox.demo_worker import DemoFailed
from worker.sandbox.stripe_control import SandboxControl

CREATED: Final = "payment.intent_created"
FAILED: Final = "payment.failed"
VISA: Final = {"confirm": True, "payment_method": "pm_card_visa"}
DECLINING: Final = {"confirm": True, "payment_method": "pm_card_chargeDeclined"}
# Amount, currency, more of the order, the event it must lead to, what is special about it.
ORDERS: Final[tuple[tuple[str, str, dict[str, Any], str, str], ...]] = (
    ("99.99", "usd", {}, CREATED, ""),
    ("24.90", "eur", {}, CREATED, ""),
    ("4200", "jpy", {}, CREATED, "yen have no decimals"),
    ("250.00", "usd", VISA, CREATED, "to be charged at once"),
    ("18.50", "eur", DECLINING, FAILED, "with a card that will be declined"),
    ("980", "jpy", {}, CREATED, "asks for a private reply"),
    ("1250.00", "usd", {}, CREATED, ""),
    ("7.05", "eur", {}, CREATED, ""),
    ("15000", "jpy", {}, CREATED, ""),
    ("64.00", "usd", {}, CREATED, ""),
)
WANTS_REPLY: Final = 5
FIRST_PART: Final = 6  # orders before the one that the kill interrupts
SENT_TWICE: Final = 1
BAD_AMOUNT: Final = "10.005"


@contextlib.asynccontextmanager
async def open_story(stage: Stage, screen: Screen, run_id: str) -> AsyncIterator["Story"]:
    """The order service and the fulfilment service, each on a connection of its own. Raises DemoFailed."""
    async with await connect(stage.amqp_url) as shop_side, await connect(stage.amqp_url) as fulfilment_side:
        shop = await OrderService.open(shop_side, exchange=stage.names.orders_exchange)
        fulfilment = await FulfilmentService.open(
            fulfilment_side,
            exchange=stage.names.payments_exchange,
            queue=stage.fulfilment_queue,
            on_event=screen.heard,
        )
        yield Story(stage, screen, shop, fulfilment, run_id)


class Story:
    """Its parts, in order. played: what was made to happen to payments later; nothing without the sandbox."""

    def __init__(
        self, stage: Stage, screen: Screen, shop: OrderService, fulfilment: FulfilmentService, run_id: str
    ) -> None:
        self._stage = stage
        self._screen = screen
        self._shop = shop
        self._fulfilment = fulfilment
        self._run_id = run_id
        self._orders = place_orders(run_id)
        self._bad_order_id = f"{run_id}-{len(ORDERS) + 1}"
        self._interrupted_calls: list[dict[str, Any]] | None = None
        self.played: Sequence[PlayedFact] = ()

    async def tell(self) -> list[str]:
        """Returns what did not come out as promised. Raises DemoFailed where it cannot go on."""
        await self._set_up()
        await self._orders_become_payments()
        await self._kill_in_the_middle()
        await self._payments_live_on()
        seen = await self._look_from_outside()
        return judge(self._orders, self._bad_order_id, seen, self.played)

    async def _set_up(self) -> None:
        stage, screen = self._stage, self._screen
        screen.step("The parts", "All that is started here runs on this machine and is gone when the demo ends.")
        given = f"yours (AMQP_URL); every name there begins with {stage.prefix}"
        screen.fact("RabbitMQ", given if stage.prefix else "a private server on this machine")
        kind = "a sandbox on this machine" if stage.stripe.control else "test mode, with your key"
        screen.fact("Stripe", f"{kind}, {stage.stripe.base or STRIPE}")
        screen.fact("Ledger", "SQLite in a temporary folder")
        with screen.waiting("starting the worker"):
            await stage.worker.start()
        screen.fact("Worker", f"process {stage.worker.pid}, takes orders")

    async def _orders_become_payments(self) -> None:
        self._screen.step(
            "Orders become payments",
            "An order service emits six orders (→) and a bad message; a fulfilment service that is bound to "
            "all payment events hears what came of them (←).",
        )
        first = self._orders[:FIRST_PART]
        for place, order in enumerate(first):
            await self._send(order, wants_reply=place == WANTS_REPLY)
        await self._shop.place_unchecked({"order_id": self._bad_order_id, "amount": BAD_AMOUNT, "currency": "usd"})
        self._screen.sent(self._bad_order_id, BAD_AMOUNT, "usd", "half a cent: must become a dead letter")
        self._screen.space()
        await self._hear_of(first)
        await self._wait("waiting for the private reply", self._count_replies, 1)
        reply = self._shop.replies[0]
        self._screen.space()
        self._screen.done(
            f"Only the order service got the client secret of {reply.order_id}, in its private reply: "
            f"{mask_secret(reply.client_secret)}"
        )

    async def _kill_in_the_middle(self) -> None:
        stage, screen = self._stage, self._screen
        later = self._orders[FIRST_PART:]
        control = stage.stripe.control
        meanwhile = await (self._kill_before_the_answer(control, later) if control else self._kill_at_work(later))
        screen.space()
        screen.say("Orders go on coming, one of them for the second time. They wait in the queue.")
        for order in meanwhile:
            await self._send(order)
        await self._send(self._orders[SENT_TWICE], note="the same order again")
        screen.space()
        with screen.waiting("starting the worker again"):
            await stage.worker.start()
        screen.done(f"Worker {stage.worker.pid} started on the same ledger.")
        await self._hear_of(later)
        if control:
            calls = self._interrupted_calls = await control.record(order_id=later[0].order_id, operation="create")
            if was_asked_again(calls):
                screen.done(
                    f"It asked Stripe again for {later[0].order_id} under the same idempotency key, and got the intent "
                    "that was there already."
                )

    async def _kill_before_the_answer(self, control: SandboxControl, later: list[PlacedOrder]) -> list[PlacedOrder]:
        """Returns the orders that are still to be sent."""
        interrupted = later[0]
        self._screen.step(
            "The worker is killed in the middle of an order",
            f"Stripe makes the intent of {interrupted.order_id}, but its answer is held back. "
            "In that moment the worker gets a SIGKILL.",
        )
        await control.add_fault("hang_after_work", method="POST", order_id=interrupted.order_id)
        await self._send(interrupted)
        await self._wait("until Stripe has made the intent", lambda: self._count_intents(interrupted), 1)
        pid = self._stage.worker.pid
        await self._stage.worker.kill()
        intents, events = await self._count_intents(interrupted), await self._count_heard([interrupted])
        self._screen.killed(
            f"Worker {pid} killed: Stripe has {intents} intent for {interrupted.order_id}, and {events} events are out."
        )
        return later[1:]

    async def _kill_at_work(self, later: list[PlacedOrder]) -> list[PlacedOrder]:
        """The same with the real Stripe, which loses no answer at our wish. Returns an empty list."""
        self._screen.step(
            "The worker is killed in the middle of its work",
            "As soon as the first event of the next orders arrives, the worker gets a SIGKILL.",
        )
        for order in later:
            await self._send(order)
        await self._wait("until the first event arrives", lambda: self._count_heard(later), 1)
        pid = self._stage.worker.pid
        await self._stage.worker.kill()
        self._screen.killed(f"Worker {pid} killed: {await self._count_heard(later)} of {len(later)} events are out.")
        return []

    async def _payments_live_on(self) -> None:
        """Of the order that was killed in the middle: its intent is as good as any other."""
        stage, screen = self._stage, self._screen
        if stage.stripe.control is None:
            screen.space()
            screen.say("Refunds, disputes and the like are left out: no webhook reaches this machine.")
            return
        order = self._orders[FIRST_PART]
        self.played = await play_life(
            order.data, stage, screen, control=stage.stripe.control, shop=self._shop, fulfilment=self._fulfilment
        )

    async def _look_from_outside(self) -> Sighting:
        stage, screen = self._stage, self._screen
        screen.step(
            "What came of it, seen from outside",
            "The worker is stopped. Asked are Stripe (its own record), the fulfilment service (the events "
            "it took from its queue) and `payment-worker dead-letters list`; not the worker's ledger.",
        )
        with screen.waiting("stopping the worker, counting"):
            async with await connect(stage.amqp_url) as connection:
                with contextlib.suppress(TimeoutError):  # the verdict tells what is missing then
                    await letters_are_taken_in(connection, stage.names)
            stop_code = await stage.worker.stop()
            try:
                await self._fulfilment.hear_the_rest(timeout_s=WAIT_S)
            except TimeoutError:
                raise DemoFailed("the fulfilment service's queue could not be read to its end") from None
            async with await connect(stage.amqp_url) as connection:
                left = await count_messages(connection, stage.names)
            seen = Sighting(
                intents=await stage.stripe.intents(order_prefix=f"{self._run_id}-"),
                events=self._fulfilment.events,
                letters=await stage.worker.run_json("dead-letters", "list"),
                messages_left=left,
                stop_code=stop_code,
                replies=self._shop.replies,
                interrupted_calls=self._interrupted_calls,
                facts=await self._facts(),
            )
        screen.table(self._orders, seen)
        screen.space()
        if self.played:
            screen.later_table(self.played, seen)
            screen.space()
        for (order_id, kind), copies in seen.retold().items():
            screen.say(f"{kind} of {order_id} came {copies} times under one id: it counts once.")
        for letter in seen.letters:
            screen.fact("Dead letter", f"{letter['order_id']}, {letter['reason']}: {letter['error']}")
        return seen

    async def _send(self, order: PlacedOrder, *, wants_reply: bool = False, note: str | None = None) -> None:
        await self._shop.place(order.data, wants_reply=wants_reply)
        self._screen.sent(order.order_id, f"{order.data.amount:f}", order.data.currency, note or order.note)

    async def _hear_of(self, orders: list[PlacedOrder]) -> None:
        await self._wait("events", lambda: self._count_heard(orders), len(orders))

    async def _facts(self) -> dict[str, list[dict[str, int]]]:
        """What Stripe's record has of the payment whose later life was played; each of its intents, if it has more."""
        facts: dict[str, list[dict[str, int]]] = {}
        for order_id in {fact.order_id for fact in self.played}:
            for intent in await self._stage.stripe.intents(order_prefix=order_id):
                for what, found in (await self._stage.stripe.facts(intent.payment_id)).items():
                    facts.setdefault(what, []).extend(found)
        return facts

    async def _wait(self, what: str, count: Callable[[], Awaitable[int]], total: int) -> None:
        await wait_for_count(what, count, total, screen=self._screen, worker=self._stage.worker)

    async def _count_heard(self, orders: list[PlacedOrder]) -> int:
        return len(self._fulfilment.orders_heard_of() & {order.order_id for order in orders})

    async def _count_replies(self) -> int:
        return len(self._shop.replies)

    async def _count_intents(self, order: PlacedOrder) -> int:
        return len(await self._stage.stripe.intents(order_prefix=order.order_id))


def place_orders(run_id: str) -> list[PlacedOrder]:
    """The orders of a run. Their ids are new in every run, as Stripe keeps idempotency keys for a day."""
    return [
        PlacedOrder(
            OrderCreatedData.model_validate(
                {"order_id": f"{run_id}-{number:02}", "amount": amount, "currency": currency, **more}
            ),
            promises=promises,
            note=note,
        )
        for number, (amount, currency, more, promises, note) in enumerate(ORDERS, start=1)
    ]


def mask_secret(secret: str | None) -> str:
    """Enough to recognize it by, too little to pay with."""
    payment_id, mark, _ = (secret or "").partition("_secret_")
    return f"{payment_id[:8]}…{mark}********" if mark else "none"
