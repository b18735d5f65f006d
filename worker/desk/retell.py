"""`retell`: the past of the ledger to one queue alone, for a subscriber that comes late; under the same event ids."""

import argparse
from typing import Final

from worker.app import bus_names
from worker.bus.outgoing import Outgoing
from worker.bus.publisher import Publisher
from worker.desk.letters import open_ledger
from worker.desk.screen import say
from worker.errors import ConfigurationError, Unroutable
from worker.ledger import moves
from worker.settings import Settings

PAGE: Final = 200


async def retell(settings: Settings, arguments: argparse.Namespace) -> None:
    """Each payment's events in their order, confirmed one by one. Raises ConfigurationError for a queue of ours.

    Cut off, it may be begun again: a subscriber knows an event by its id.
    """
    if not settings.has_broker:
        raise ConfigurationError("AMQP_URL is not set: the queue is on the broker")
    names, told = bus_names(settings), 0
    if arguments.to in names.own_queues():
        raise ConfigurationError(f"{arguments.to} is the worker's own queue; name the subscriber's")
    async with open_ledger(settings) as ledger, Publisher(settings.amqp_url.get_secret_value(), names) as publisher:
        outgoing, after = Outgoing(publisher, names), None
        while True:
            page, after = await ledger.run(
                moves.past_events, since=arguments.since, types=arguments.type, limit=PAGE, after=after
            )
            if after is None:
                break
            for event in page:
                try:
                    await outgoing.event_to(arguments.to, event)
                except Unroutable:
                    raise ConfigurationError(
                        f"no queue {arguments.to} takes it, or it is full; {told} events were told before"
                    ) from None
                told += 1
    say(f"{told} events told to {arguments.to}.")
