"""`payment-worker check`: is everything set up? Each part with what is wrong and how to mend it."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from worker.app import build_gateway, bus_names
from worker.bus.connection import open_channel
from worker.bus.topology import declare_topology
from worker.errors import ConfigurationError, WorkerError
from worker.ledger.ledger import Ledger
from worker.ledger.migrate import HEAD, current_revision
from worker.settings import Settings, read_settings


@dataclass(frozen=True, slots=True)
class Finding:
    """One part of the surroundings. `said` is what is right, or what is wrong and how to mend it."""

    part: str
    is_fine: bool
    said: str


async def check(environment: Mapping[str, str]) -> list[Finding]:
    """Look at settings, broker, ledger and Stripe. Declares the queues; changes nothing else."""
    try:
        settings = read_settings(environment)
    except ConfigurationError as error:
        return [Finding("settings", False, problem) for problem in str(error).splitlines()]
    parts = await asyncio.gather(_broker(settings), _ledger(settings), _stripe(settings))
    return [Finding("settings", True, "complete"), *parts]


async def _broker(settings: Settings) -> Finding:
    try:
        async with open_channel(settings.amqp_url.get_secret_value(), role="checks", publishes=False) as channel:
            await declare_topology(channel, bus_names(settings))
    except WorkerError as error:
        return Finding("broker", False, f"{error}. See AMQP_URL")
    return Finding("broker", True, f"queue {settings.orders_queue!r} and the others are there")


async def _ledger(settings: Settings) -> Finding:
    try:
        async with Ledger(settings.database_url.get_secret_value()) as ledger:
            revision = await asyncio.to_thread(current_revision, ledger.engine)
            where = ledger.address
    except WorkerError as error:
        return Finding("ledger", False, f"{error}. See DATABASE_URL")
    kind = f"{'SQLite' if settings.ledger_is_sqlite else 'PostgreSQL'} at {where}"
    if revision == HEAD:
        return Finding("ledger", True, f"{kind}, schema {HEAD}")
    if settings.migrates_at_start:
        return Finding("ledger", True, f"{kind}, schema {revision or 'empty'}; 'run' brings it to {HEAD}")
    return Finding("ledger", False, f"{kind}, schema {revision or 'empty'}; run 'payment-worker migrate'")


async def _stripe(settings: Settings) -> Finding:
    mode = "live mode: real money" if settings.livemode else "test mode"
    where = settings.stripe_api_base or "Stripe"
    async with build_gateway(settings) as gateway:
        try:
            await gateway.probe()
        except WorkerError as error:
            return Finding("stripe", False, f"{where}: {error}. See STRIPE_API_KEY and STRIPE_API_BASE")
    return Finding("stripe", True, f"{where} takes the key, {mode}")
