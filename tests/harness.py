"""The world round the worker, as tests drive it: a shop with a subscriber, and the worker as a real process."""

import asyncio
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Protocol, Self
from uuid import uuid4

import aio_pika
from aio_pika.abc import AbstractIncomingMessage
from aio_pika.exceptions import ChannelNotFoundEntity

from schemas import COMMAND_TYPES
from worker.bus.topology import BusNames, declare_topology
from worker.retry_policy import RUNGS_S
from worker.sandbox.private_server import PrivateServer
from worker.settings import SETTING_NAMES

DEADLINE_S = 30
QUORUM = {"x-queue-type": "quorum"}


async def until(is_so: Callable[[], Any], *, what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Wait for a condition, sync or async; returns its value. Fails with what was waited for."""
    end = time.monotonic() + deadline_s
    while True:
        value = is_so()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"waited {deadline_s} s in vain for: {what}")
        await asyncio.sleep(0.02)


def new_names() -> dict[str, str]:
    """Names on the broker that no other test has, as the worker's environment."""
    prefix = f"t{uuid4().hex[:10]}"
    return {
        "ORDERS_EXCHANGE": f"{prefix}.orders",
        "ORDERS_QUEUE": f"{prefix}.worker.orders",
        "RETRY_QUEUE_PREFIX": f"{prefix}.worker.retry",
        "DEAD_LETTERS_QUEUE": f"{prefix}.worker.dead-letters",
        "PAYMENTS_EXCHANGE": f"{prefix}.payments",
    }


class StartPython(Protocol):
    """Starts Python with arguments and an environment; its streams are file descriptors."""

    def __call__(
        self, arguments: Sequence[str], environment: dict[str, str], *, stdout: int, stderr: int
    ) -> subprocess.Popen[bytes]: ...


def start_interpreter(
    arguments: Sequence[str], environment: dict[str, str], *, stdout: int, stderr: int
) -> subprocess.Popen[bytes]:
    """As a user does."""
    return subprocess.Popen([sys.executable, *arguments], env=environment, stdout=stdout, stderr=stderr)


# How programs start here; tests that are not about the start fork them instead (tests/conftest.py).
start_python: StartPython = start_interpreter


class WorkerProcess:
    """`python -m worker run` as a process of its own, its log in a file."""

    def __init__(self, environment: dict[str, str], log: Path, *, command: Sequence[str] = ("-m", "worker", "run")):
        self._environment = environment
        self._command = command
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        with self.log.open("ab") as log:
            streams = {"stdout": log.fileno(), "stderr": log.fileno()}
            self._process = start_python(self._command, self._environment, **streams)
        return self

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def lines(self) -> list[dict[str, Any]]:
        written = self.log.read_text(errors="replace") if self.log.exists() else ""
        whole = written[: written.rfind("\n") + 1].splitlines()  # the last one may be half written
        return [json.loads(line) for line in whole if line.startswith("{")]

    def said(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.lines() if line.get("event") == event]

    async def until_subscribed(self) -> Self:
        count = len(self.said("consumer.subscribed"))
        await until(
            lambda: len(self.said("consumer.subscribed")) > count or not self.is_running() or count,
            what="the worker to subscribe",
        )
        assert self.is_running(), self.log.read_text()
        return self

    @property
    def http(self) -> str:
        return str(self.said("worker.started")[-1]["http"])

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    async def exit_code(self, deadline_s: float = DEADLINE_S) -> int:
        return await asyncio.to_thread(self.process.wait, deadline_s)

    async def stop(self) -> int:
        if self.is_running():
            self.process.send_signal(signal.SIGTERM)
        return await self.exit_code()


class Shop:
    """An order service and a subscriber, as another team would write them: plain aio-pika."""

    def __init__(self, amqp_url: str, names: dict[str, str]) -> None:
        self._url = amqp_url
        self.names = names
        self.events: list[dict[str, Any]] = []
        self.messages: list[AbstractIncomingMessage] = []
        self.replies: list[tuple[str | None, dict[str, Any]]] = []

    async def __aenter__(self) -> Self:
        self.connection = await aio_pika.connect(self._url)
        self.channel = await self.connection.channel(on_return_raises=True)
        self.orders = await self.channel.declare_exchange(self.names["ORDERS_EXCHANGE"], "topic", durable=True)
        self.payments = await self.channel.declare_exchange(self.names["PAYMENTS_EXCHANGE"], "topic", durable=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.delete_worker_queues()
        channel = await self.connection.channel()
        for exchange in (self.names["ORDERS_EXCHANGE"], self.names["PAYMENTS_EXCHANGE"]):
            await channel.exchange_delete(exchange)
        await self.connection.close()

    async def subscribe(self, binding: str = "payment.#") -> None:
        """A queue of our own on the payment events; what arrives is in `events` and `messages`."""
        queue = await self.channel.declare_queue(exclusive=True)
        await queue.bind(self.payments, binding)

        async def take(message: AbstractIncomingMessage) -> None:
            self.messages.append(message)
            self.events.append(json.loads(message.body))

        await queue.consume(take, no_ack=True)

    async def await_replies(self) -> str:
        """A private queue for replies; what arrives is in `replies`."""
        queue = await self.channel.declare_queue(exclusive=True)

        async def take(message: AbstractIncomingMessage) -> None:
            self.replies.append((message.correlation_id, json.loads(message.body)))

        await queue.consume(take, no_ack=True)
        return queue.name

    async def send(self, body: bytes | dict[str, Any], **properties: Any) -> None:
        """Publish to the orders exchange, confirmed. A dict is sent as plain JSON."""
        await self.orders.publish(_message(body, properties), "order.created", mandatory=False)

    async def send_to(self, queue: str, body: dict[str, Any], **properties: Any) -> None:
        """Past the exchange, into one queue alone."""
        await self.channel.default_exchange.publish(_message(body, properties), queue)

    async def send_all(self, orders: Sequence[dict[str, Any]]) -> None:
        await asyncio.gather(*(self.send(order) for order in orders))

    async def declare_worker_queue(self, *, routing_key: str = "order.created", **names: str) -> None:
        """So that orders sent before the worker's first start are kept: the worker finds it as it wants it."""
        fields = {key.lower(): value for key, value in (self.names | names).items()}
        bus = BusNames(
            orders_routing_key=routing_key,
            retry_delays_s=RUNGS_S,
            command_routing_keys=tuple(sorted(COMMAND_TYPES)),
            **fields,
        )
        await declare_topology(self.channel, bus)

    async def delete_worker_queues(self, **names: str) -> None:
        """With what they hold; names: another worker's, which shares the dead letters with us."""
        own = names or self.names
        queues = [value for key, value in own.items() if key.endswith("_QUEUE")]
        queues += [f"{own['RETRY_QUEUE_PREFIX']}.{delay}s" for delay in RUNGS_S]
        channel = await self.connection.channel()
        for queue in queues:
            await channel.queue_delete(queue)
        await channel.close()

    async def take(self, queue: str) -> AbstractIncomingMessage | None:
        """The first message of a queue, taken away."""
        channel = await self.connection.channel()
        try:
            return await (await channel.get_queue(queue)).get(no_ack=True, fail=False)
        finally:
            await channel.close()

    async def lose_the_order(self) -> None:
        """The one order that a killed worker gives back is purged from the queue."""
        await until(lambda: self.take(self.names["ORDERS_QUEUE"]), what="the order to come back")

    async def purge_orders(self) -> None:
        """What a killed worker gives back is lost, once the broker has noticed its end."""
        await until(lambda: self.has_consumers(0), what="the broker to notice the death")
        channel = await self.connection.channel()
        await (await channel.get_queue(self.names["ORDERS_QUEUE"])).purge()
        await channel.close()

    async def has_consumers(self, count: int) -> bool:
        """Whether that many workers are subscribed."""
        channel = await self.connection.channel()
        try:
            declared = await channel.declare_queue(self.names["ORDERS_QUEUE"], passive=True)
            return declared.declaration_result.consumer_count == count
        finally:
            await channel.close()

    async def ready_count(self, queue: str) -> int:
        """Messages that lie ready in a queue."""
        channel = await self.connection.channel()
        try:
            declared = await channel.declare_queue(queue, passive=True)
            return declared.declaration_result.message_count or 0
        finally:
            await channel.close()

    async def until_events(self, count: int, *, deadline_s: float = DEADLINE_S) -> list[dict[str, Any]]:
        """Wait for that many different events."""
        await until(
            lambda: len({event["id"] for event in self.events}) >= count,
            what=f"{count} different events",
            deadline_s=deadline_s,
        )
        return self.events

    def events_per_order(self) -> Counter[str]:
        """Different event ids for each order."""
        return Counter(order for order, _ in {(event["subject"], event["id"]) for event in self.events})


def _message(body: bytes | dict[str, Any], properties: dict[str, Any]) -> aio_pika.Message:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    kept = {"delivery_mode": aio_pika.DeliveryMode.PERSISTENT, "message_id": uuid4().hex}
    return aio_pika.Message(data, **(kept | properties))


def run_cli(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """A command of `payment-worker`, to its end."""
    with TemporaryFile("w+") as out, TemporaryFile("w+") as err:
        process = start_python(["-m", "worker", *words], environment, stdout=out.fileno(), stderr=err.fileno())
        try:
            code = process.wait(60)
        finally:
            process.kill()  # only where it still runs
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(process.args, code, out.read(), err.read())


def on_terminal(environment: dict[str, str], words: Sequence[str], *, columns: int) -> tuple[int, str]:
    """A command's exit code and what it writes to a terminal so wide, without its styles."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    plain = {name: value for name, value in environment.items() if name not in ("COLUMNS", "LINES")}
    command = start_python(["-m", "worker", *words], plain | {"TERM": "xterm"}, stdout=theirs, stderr=2)
    os.close(theirs)
    written = b""
    try:
        while piece := os.read(ours, 65_536):
            written += piece
    except OSError:  # Linux's way to say that the other side is closed
        pass
    os.close(ours)
    return command.wait(30), re.sub(r"\x1b\[[0-9;]*m", "", written.decode())


async def dead_letters(environment: dict[str, str], *words: str) -> list[dict[str, Any]]:
    """What `dead-letters list --json` shows, once a worker has taken in what lies in the queue."""
    await until(lambda: _has_no_letters(environment), what="a worker to take in the dead letters")
    done = await asyncio.to_thread(run_cli, environment, "dead-letters", "list", "--json", *words)
    assert done.returncode == 0, done.stderr
    letters: list[dict[str, Any]] = json.loads(done.stdout)
    return letters


async def _has_no_letters(environment: dict[str, str]) -> bool:
    async with await aio_pika.connect(environment["AMQP_URL"]) as connection:
        channel = await connection.channel()
        try:
            declared = await channel.declare_queue(environment["DEAD_LETTERS_QUEUE"], passive=True)
        except ChannelNotFoundEntity:
            return True
        return declared.declaration_result.message_count == 0


def clean_environment(**settings: str) -> dict[str, str]:
    """The process environment without any setting of the product, and then these."""
    return {name: value for name, value in os.environ.items() if name not in SETTING_NAMES} | settings


@contextmanager
def frozen(server: PrivateServer) -> Iterator[None]:
    """It takes connections, as its kernel does for it, and says nothing."""
    pids = _family(server.pid)
    _signal_all(pids, signal.SIGSTOP)
    try:
        yield
    finally:
        _signal_all(pids, signal.SIGCONT)


def _signal_all(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):  # a child that has just ended
            os.kill(pid, number)


def _family(pid: int) -> list[int]:
    try:
        children = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    except FileNotFoundError:  # it has just ended
        return []
    return [pid, *(each for child in children for each in _family(child))]
