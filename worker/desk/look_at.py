"""What `status` tells of: the worker as it says itself, the queues, and the ledger's figures.

What cannot be reached has the reason in its place; nothing here raises for it, and nothing is changed.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import aiohttp

from worker.admission import CREATE
from worker.app import bus_names
from worker.bus.queue_depths import queue_depths
from worker.desk.letters import open_ledger
from worker.errors import BusUnavailable, WorkerError
from worker.ledger import figures, inbox, letter_figures, life_figures, moves
from worker.ledger.engine import told_address
from worker.ledger.figures import HeldUp, MoneyFigures
from worker.ledger.inbox import WaitingGroup
from worker.ledger.letter_figures import LetterFigures, LetterGroup
from worker.ledger.letters import LetterFilter
from worker.ledger.life_figures import DisputeOfOrder, RefundOfOrder
from worker.ledger.moves import Backlog
from worker.ledger.replays import Replay
from worker.letter import LetterState
from worker.settings import Settings

# The worker answers from memory; one that does not is frozen, or is not the worker.
HTTP_TIMEOUT_S: Final = 2
# A replay waits a minute for the outcomes of a wave, unless told otherwise: after two, nobody carries it out any more.
REPLAY_QUIET_S: Final = 120
# A worker that is well has an outcome within seconds, and the short retries are over within three minutes. What comes
# after them, every ten minutes for hours, is a trouble that somebody should know of.
REPLAYING_LONG_S: Final = 600
# Stripe may say a month after it has made a refund that it has failed; a month more, for somebody to see it.
FAILED_REFUNDS_FOR: Final = timedelta(days=60)
# Where a worker listens on every address, it is asked on this one.
_LOOPBACK: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - it is looked up, not listened on

Depth = tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class WorkerSays:
    """{part: sentence} each. reasons: why it does not work. concerns: what needs a person though it does."""

    reasons: Mapping[str, str]
    concerns: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class InLedger:
    """What the ledger tells. per_second: the rate of calls to Stripe that all workers keep to now.

    quiet_replays: unfinished, and nothing of them has moved for REPLAY_QUIET_S. replaying_long: those of the letters
    being replayed that were taken more than REPLAYING_LONG_S ago. lost_answers: calls that nobody waits for any more,
    and that are to be asked again. waiting: Stripe's events that are not done with. disputes: those that have not
    ended, the first evidence due in front. failed_refunds: of those made within FAILED_REFUNDS_FOR.
    """

    workers_alive: int
    per_second: float
    letters: LetterFigures
    groups: Sequence[LetterGroup]
    replaying: HeldUp
    replaying_long: HeldUp
    quiet_replays: Sequence[Replay]
    money: MoneyFigures
    lost_answers: HeldUp
    backlog: Backlog
    waiting: Sequence[WaitingGroup]
    disputes: Sequence[DisputeOfOrder]
    pending_refunds: Sequence[RefundOfOrder]
    failed_refunds: Sequence[RefundOfOrder]


@dataclass(frozen=True, slots=True)
class Seen:
    """What was found, each part with the reason in its place where it could not be reached.

    worker: as the one at `address` says. queues: ready messages and consumers of each, None for one that is not there
    yet. ledger_address: without its password.
    """

    now: datetime
    address: str
    ledger_address: str
    worker: WorkerSays | str
    queues: Mapping[str, Depth] | str
    ledger: InLedger | str


async def look(settings: Settings) -> Seen:
    """All of it, as it is now."""
    now = datetime.now(UTC)
    ledger = await _look_at_ledger(settings, now=now)
    address = _address(settings)
    worker, queues = await asyncio.gather(_ask_worker(address), _look_at_queues(settings))
    return Seen(now, address or "", _ledger_address(settings), worker, queues, ledger)


def _ledger_address(settings: Settings) -> str:
    try:
        return told_address(settings.database_url.get_secret_value())
    except WorkerError as error:
        return str(error)


async def _look_at_ledger(settings: Settings, *, now: datetime) -> InLedger | str:
    limit, horizon_s = settings.stripe_rate_limit, settings.stripe_key_horizon
    quiet_since, long_since = now - timedelta(seconds=REPLAY_QUIET_S), now - timedelta(seconds=REPLAYING_LONG_S)
    try:
        async with open_ledger(settings) as ledger:
            alive, per_second, money, lost, backlog = await asyncio.gather(
                ledger.run(figures.workers_alive, now=now, within_s=settings.claim_ttl),
                ledger.run(figures.per_second_now, endpoint=CREATE, limit=limit, now=time.time()),
                ledger.run(figures.money_figures, now=now, key_horizon_s=horizon_s),
                ledger.run(figures.lost_answers, asked_before=now - timedelta(seconds=settings.stripe_timeout)),
                ledger.run(moves.backlog),
            )
            of_letters, groups, replaying, replaying_long, quiet_replays = await asyncio.gather(
                ledger.run(letter_figures.figures),
                ledger.run(letter_figures.groups, LetterFilter(states=(LetterState.OPEN,))),
                ledger.run(figures.replaying_letters),
                ledger.run(figures.replaying_letters, moved_before=long_since),
                ledger.run(figures.quiet_replays, moved_before=quiet_since),
            )
            waiting, disputes, pending, failed = await asyncio.gather(
                ledger.look(inbox.waiting_groups, received_before=now),
                ledger.look(life_figures.open_disputes),
                ledger.look(life_figures.pending_refunds),
                ledger.look(life_figures.failed_refunds, made_since=now - FAILED_REFUNDS_FOR),
            )
    except WorkerError as error:
        return str(error)
    return InLedger(
        workers_alive=alive,
        per_second=per_second,
        letters=of_letters,
        groups=groups,
        replaying=replaying,
        replaying_long=replaying_long,
        quiet_replays=quiet_replays,
        money=money,
        lost_answers=lost,
        backlog=backlog,
        waiting=waiting,
        disputes=disputes,
        pending_refunds=pending,
        failed_refunds=failed,
    )


def _address(settings: Settings) -> str | None:
    """Where the worker tells of itself; None where its port cannot be known."""
    host = _LOOPBACK.get(settings.http_host, settings.http_host)
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.http_port}" if settings.http_port else None


async def _ask_worker(address: str | None) -> WorkerSays | str:
    """What it says, or why it could not be asked."""
    if address is None:
        return "the worker is not asked: HTTP_PORT is 0"
    try:
        timeout = aiohttp.ClientTimeout(total=HTTP_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(f"{address}/readyz") as answer:
            said = await answer.json(content_type=None)
    except TimeoutError:
        return f"nothing answers at {address} within {HTTP_TIMEOUT_S} s"
    except (aiohttp.ClientError, OSError):
        return f"no worker answers at {address}"
    except ValueError:
        said = None
    if not isinstance(said, dict) or not isinstance(said.get("reasons"), dict):
        return f"what answers at {address} is no payment-worker"
    return WorkerSays(_texts(said["reasons"]), _texts(said.get("concerns")))


def _texts(told: Any) -> dict[str, str]:
    """Empty for what is not there: a worker of an older version says less."""
    return {str(part): str(sentence) for part, sentence in told.items()} if isinstance(told, dict) else {}


async def _look_at_queues(settings: Settings) -> Mapping[str, Depth] | str:
    if not settings.has_broker:
        return "AMQP_URL is not set"
    names = bus_names(settings)
    retries = [names.retry_queue(delay_s) for delay_s in names.retry_delays_s]
    try:
        return await queue_depths(
            settings.amqp_url.get_secret_value(), [names.orders_queue, *retries, names.dead_letters_queue]
        )
    except BusUnavailable as error:
        return str(error)
