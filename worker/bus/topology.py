"""The queues and exchanges, as every side finds them. Works on RabbitMQ 3.10 and 4.

Arguments are set here only where a policy could not set them safely for a first start: type, dead-letter route,
delivery limit, TTL. Sources: https://www.rabbitmq.com/docs/quorum-queues, https://www.rabbitmq.com/docs/dlx.
"""

from dataclasses import dataclass
from typing import Any, Final

from aio_pika import ExchangeType
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import ChannelPreconditionFailed

from worker.errors import TopologyMismatch

# Counted by the broker for each return, a crash of ours and a lost connection included; our own count of attempts
# is kept elsewhere. It only stops what kills every worker that touches it, after days rather than minutes. Always
# positive: -1 means "drop at once" to RabbitMQ 3.10, and 4.x has a default of 20, which one bad night uses up.
ORDERS_DELIVERY_LIMIT: Final = 1_000
# Looking at dead letters returns them each time, and a look must never cost one.
DEAD_LETTERS_DELIVERY_LIMIT: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class BusNames:
    """The names on the broker, and the delays of the retry queues in seconds."""

    orders_exchange: str
    orders_routing_key: str
    orders_queue: str
    retry_queue_prefix: str
    dead_letters_queue: str
    payments_exchange: str
    retry_delays_s: tuple[int, ...]
    command_routing_keys: tuple[str, ...] = ()

    def retry_queue(self, delay_s: int) -> str:
        """The queue that holds a message for delay_s and then hands it back to the worker's queue alone."""
        return f"{self.retry_queue_prefix}.{delay_s}s"

    def own_queues(self) -> frozenset[str]:
        """Queues of the worker itself: no reply goes there."""
        retries = (self.retry_queue(delay_s) for delay_s in self.retry_delays_s)
        return frozenset({self.orders_queue, self.dead_letters_queue, *retries})


async def declare_topology(channel: AbstractChannel, names: BusNames) -> None:
    """Declare everything; all of it durable, queues quorum. Raises TopologyMismatch.

    Dead-lettering by the broker is at-least-once, which needs reject-publish as the overflow behaviour.
    """
    await declare_payments(channel, names)
    await _declare_queue(
        channel, names.dead_letters_queue, route_to=names.dead_letters_queue, limit=DEAD_LETTERS_DELIVERY_LIMIT
    )
    await _declare_queue(channel, names.orders_queue, route_to=names.dead_letters_queue, limit=ORDERS_DELIVERY_LIMIT)
    for delay_s in names.retry_delays_s:
        await _declare_queue(
            channel,
            names.retry_queue(delay_s),
            route_to=names.orders_queue,
            limit=ORDERS_DELIVERY_LIMIT,
            more={"x-message-ttl": delay_s * 1000},
        )
    try:
        orders = await channel.declare_exchange(names.orders_exchange, ExchangeType.TOPIC, durable=True)
    except ChannelPreconditionFailed as error:
        raise _mismatch("exchange", names.orders_exchange, "a durable topic exchange", error) from error
    queue = await channel.get_queue(names.orders_queue, ensure=False)
    for routing_key in (names.orders_routing_key, *names.command_routing_keys):
        await queue.bind(orders, routing_key)


async def declare_payments(channel: AbstractChannel, names: BusNames) -> None:
    """The exchange that payment events go out on. Raises TopologyMismatch."""
    try:
        await channel.declare_exchange(names.payments_exchange, ExchangeType.TOPIC, durable=True)
    except ChannelPreconditionFailed as error:
        raise _mismatch("exchange", names.payments_exchange, "a durable topic exchange", error) from error


async def _declare_queue(
    channel: AbstractChannel, name: str, *, route_to: str, limit: int, more: dict[str, Any] | None = None
) -> None:
    arguments: dict[str, Any] = {
        "x-queue-type": "quorum",
        "x-delivery-limit": limit,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": route_to,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
        **(more or {}),
    }
    try:
        await channel.declare_queue(name, durable=True, arguments=arguments)
    except ChannelPreconditionFailed as error:
        wanted = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise _mismatch("queue", name, f"a durable queue with {wanted}", error) from error


def _mismatch(kind: str, name: str, wanted: str, error: Exception) -> TopologyMismatch:
    return TopologyMismatch(
        f"{kind} {name!r} exists, but otherwise than this worker needs it: {error}. Wanted: {wanted}. "
        f"Drain and delete the {kind}, or give this worker another name for it, and start again"
    )
