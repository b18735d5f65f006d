"""Builds everything once, runs until stopped, closes in reverse."""

import asyncio
import contextlib
import gc
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Final

import structlog

from schemas import COMMAND_TYPES
from worker.admission import Admission
from worker.apply_stripe_events import StripeEventApplier
from worker.bus.outgoing import Outgoing
from worker.bus.publisher import Publisher
from worker.bus.subscription import subscribe
from worker.bus.topology import BusNames
from worker.carry_out_command import CommandDoer
from worker.consume import Consumer
from worker.decide_payment import PaymentDecider
from worker.errors import LedgerUnavailable
from worker.find_evidence import EvidenceFinder
from worker.health import serve_health
from worker.land_letters import LetterIntake
from worker.ledger import moves
from worker.ledger.ledger import Ledger
from worker.ledger.migrate import migrate, require_head
from worker.metrics import Metrics
from worker.process_order import OrderProcessor
from worker.publish_events import EventRelay
from worker.receive_webhooks import WebhookReceiver
from worker.reconcile import Reconciler
from worker.reply_to_order import Replies
from worker.resolve_unknown import Resolver
from worker.retry_policy import RUNGS_S
from worker.settings import Settings
from worker.stripe_gateway import StripeGateway
from worker.surroundings import Surroundings
from worker.watch_authorizations import AuthorizationWatch

log: Final = structlog.get_logger()

# Beyond DRAIN_TIMEOUT: enough to close what answers. What does not is left, as by a SIGKILL, which loses nothing.
STOP_MARGIN_S: Final = 3.5
# A few large ones fit a small container.
LETTERS_AT_ONCE: Final = 50
CUT_OFF_EXIT: Final = 1
# Not told of our end, the others see it by CLAIM_TTL.
SIGN_OFF_TIMEOUT_S: Final = 0.5


def now_utc() -> datetime:
    """The wall clock. Replicas keep time by NTP; a few seconds between them cost nothing but a second asking."""
    return datetime.now(UTC)


def bus_names(settings: Settings) -> BusNames:
    """The names on the broker as set."""
    return BusNames(
        orders_exchange=settings.orders_exchange,
        orders_routing_key=settings.orders_routing_key,
        orders_queue=settings.orders_queue,
        retry_queue_prefix=settings.retry_queue_prefix,
        dead_letters_queue=settings.dead_letters_queue,
        payments_exchange=settings.payments_exchange,
        retry_delays_s=RUNGS_S,
        command_routing_keys=tuple(sorted(COMMAND_TYPES)),
    )


def build_gateway(settings: Settings, observe: Callable[[str, str, float], None] = lambda *_: None) -> StripeGateway:
    """The Stripe door as set; inside a running loop. observe: see StripeGateway."""
    return StripeGateway(
        api_key=settings.stripe_api_key.get_secret_value(),
        api_base=settings.stripe_api_base,
        livemode=settings.livemode,
        timeout_s=settings.stripe_timeout,
        max_connections=settings.prefetch,
        observe=observe,
    )


async def run_worker(settings: Settings) -> None:
    """Consume until SIGTERM or SIGINT, then finish what was begun.

    A second signal ends the process at once. Raises ConfigurationError and LedgerUnavailable where the start fails.
    """
    worker_id, metrics, names = uuid.uuid4().hex[:12], Metrics(), bus_names(settings)
    structlog.contextvars.bind_contextvars(worker=worker_id)
    stop = asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(_stop_on_signals(stop, within_s=settings.drain_timeout + STOP_MARGIN_S))
        ledger = await stack.enter_async_context(Ledger(settings.database_url.get_secret_value()))
        await asyncio.to_thread(migrate if settings.migrates_at_start else require_head, ledger.engine)
        await ledger.run(moves.sign_of_life, worker_id, now=now_utc())
        gateway = await stack.enter_async_context(build_gateway(settings, metrics.observe_stripe))
        publisher = await stack.enter_async_context(Publisher(settings.amqp_url.get_secret_value(), names))
        outgoing = Outgoing(publisher, names)
        relay = EventRelay(ledger=ledger, outgoing=outgoing, metrics=metrics, clock=now_utc)
        admission = Admission(
            ledger=ledger, limit=settings.stripe_rate_limit, most_out=settings.prefetch, clock=time.time
        )
        decider = PaymentDecider(
            ledger=ledger,
            gateway=gateway,
            admission=admission,
            evidence=EvidenceFinder(gateway=gateway, call_timeout_s=settings.stripe_timeout, clock=now_utc),
            metrics=metrics,
            worker_id=worker_id,
            claim_ttl_s=settings.claim_ttl,
            key_horizon_s=settings.stripe_key_horizon,
            event_source=settings.event_source,
            clock=now_utc,
        )
        commands = CommandDoer(
            ledger=ledger,
            gateway=gateway,
            admission=admission,
            relay=relay,
            key_horizon_s=settings.stripe_key_horizon,
            event_source=settings.event_source,
            clock=now_utc,
        )
        processor = OrderProcessor(
            ledger=ledger,
            decider=decider,
            admission=admission,
            outgoing=outgoing,
            relay=relay,
            replies=Replies(gateway=gateway, outgoing=outgoing),
            commands=commands,
            clock=now_utc,
        )
        resolver = Resolver(
            ledger=ledger,
            decider=decider,
            relay=relay,
            after_s=settings.resolve_after,
            key_horizon_s=settings.stripe_key_horizon,
            clock=now_utc,
        )
        surroundings = Surroundings(
            ledger=ledger,
            gateway=gateway,
            admission=admission,
            outgoing=outgoing,
            worker_id=worker_id,
            key_horizon_s=settings.stripe_key_horizon,
            metrics=metrics,
            clock=now_utc,
        )
        applier = StripeEventApplier(
            ledger=ledger,
            gateway=gateway,
            relay=relay,
            metrics=metrics,
            event_source=settings.event_source,
            clock=now_utc,
        )
        authorizations = AuthorizationWatch(
            ledger=ledger, relay=relay, event_source=settings.event_source, clock=now_utc
        )
        reconciler = Reconciler(
            ledger=ledger, gateway=gateway, relay=relay, event_source=settings.event_source, clock=now_utc
        )
        webhooks = WebhookReceiver(
            ledger=ledger,
            secrets=settings.webhook_secrets,
            tolerance_s=settings.webhook_tolerance,
            livemode=settings.livemode,
            metrics=metrics,
            received=applier.wake,
            clock=now_utc,
        )
        consumer = Consumer(
            subscribe=lambda on_delivery: subscribe(
                settings.amqp_url.get_secret_value(),
                names,
                queue_name=names.orders_queue,
                prefetch=settings.prefetch,
                on_delivery=on_delivery,
                clock=now_utc,
            ),
            process=processor.process,
            recovered=surroundings.ask,
            begin_nothing=admission.stop,
            concurrency=settings.prefetch,
            ceiling=settings.dead_letter_ceiling,
            drain_timeout_s=settings.drain_timeout,
            metrics=metrics,
        )
        intake = LetterIntake(
            subscribe=lambda on_delivery: subscribe(
                settings.amqp_url.get_secret_value(),
                names,
                queue_name=names.dead_letters_queue,
                prefetch=LETTERS_AT_ONCE,
                on_delivery=on_delivery,
                clock=now_utc,
            ),
            ledger=ledger,
            metrics=metrics,
            clock=now_utc,
        )
        address = await stack.enter_async_context(
            serve_health(
                host=settings.http_host,
                port=settings.http_port,
                why_not_ready=partial(_why_not_ready, consumer, surroundings, admission),
                concerns=intake.concerns,
                metrics=metrics,
                more=webhooks.routes(),
            )
        )
        gc.freeze()  # what was built for the worker's life is not searched for garbage with every few orders
        log.info("worker.started", http=address, livemode=settings.livemode, ledger=ledger.address)
        await _run_beside(
            consumer.run(stop),
            relay.run(),
            resolver.run(),
            intake.run(),
            applier.run(),
            authorizations.run(),
            commands.watch(after_s=settings.resolve_after),
            *([reconciler.watch(every_s=settings.reconcile_every)] if settings.reconcile_every else []),
            surroundings.watch(every_s=settings.claim_ttl / 4),
        )
        with contextlib.suppress(LedgerUnavailable, TimeoutError):
            async with asyncio.timeout(SIGN_OFF_TIMEOUT_S):
                await ledger.run(moves.sign_off, worker_id)
    log.info("worker.stopped")


async def _why_not_ready(consumer: Consumer, surroundings: Surroundings, admission: Admission) -> Mapping[str, str]:
    reasons = dict(surroundings.faults)
    if admission.fault:
        reasons.setdefault("stripe", admission.fault)
    if not consumer.state.subscribed:
        reasons["subscription"] = consumer.state.why_not
    return reasons


@contextlib.contextmanager
def _stop_on_signals(stop: asyncio.Event, *, within_s: float) -> Iterator[None]:
    """SIGTERM and SIGINT ask for a clean stop; the next one gets the system's own treatment and ends us at once.

    A clean stop that takes longer than within_s is ended too: a thread may wait for a server that is frozen.
    """
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)

    def ask_to_stop(number: signal.Signals) -> None:
        log.info("worker.stopping", signal=number.name)
        stop.set()
        deadline = threading.Timer(within_s, _end_now)
        deadline.daemon = True
        deadline.start()
        for each in signals:
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)

    for each in signals:
        loop.add_signal_handler(each, ask_to_stop, each)
    try:
        yield
    finally:
        for each in signals:
            loop.remove_signal_handler(each)


def _end_now() -> None:
    log.error("worker.cut_off", why="something around us does not answer, and a clean stop took too long")
    sys.stderr.flush()
    os._exit(CUT_OFF_EXIT)


async def _run_beside(main: Coroutine[None, None, None], *loops: Coroutine[None, None, None]) -> None:
    """Run until `main` ends. An endless loop that dies takes all down with it: half a worker is worse than none."""
    tasks = [asyncio.create_task(each) for each in (main, *loops)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
