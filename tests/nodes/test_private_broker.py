import asyncio
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import aio_pika
import pytest

from worker.sandbox import broker as broker_module
from worker.sandbox.broker import PrivateBroker
from worker.sandbox.private_server import ServerError, free_ports, wait_until

Processes = Callable[[Path], dict[int, str]]


@pytest.fixture(scope="module")
def broker() -> Iterator[PrivateBroker]:
    with PrivateBroker() as running:
        yield running


async def publish(url: str, queue: str, body: bytes) -> None:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel(on_return_raises=True)
        await channel.declare_queue(queue, durable=True, arguments={"x-queue-type": "quorum"})
        message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await channel.default_exchange.publish(message, queue, timeout=20)


async def take(url: str, queue: str) -> bytes:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        found = await channel.get_queue(queue)
        message = await found.get(no_ack=True, timeout=20)
        return message.body


async def test_it_carries_a_message(broker: PrivateBroker) -> None:
    await publish(broker.amqp_url, "plain", b"hello")
    assert await take(broker.amqp_url, "plain") == b"hello"


async def test_it_listens_on_loopback_only(
    broker: PrivateBroker,
    processes_in: Processes,
    listening_addresses: Callable[[Path], set[str]],
    loopback: set[str],
) -> None:
    assert {"beam.smp", "epmd"} <= set(processes_in(broker.folder).values())
    assert "0100007F" in listening_addresses(broker.folder) <= loopback


async def test_rabbitmqctl_speaks_to_this_node(broker: PrivateBroker) -> None:
    assert "private@localhost" in await broker.ctl("status")
    with pytest.raises(ServerError, match=r"(?s)rabbitmqctl delete_queue nowhere failed: .*not found"):
        await broker.ctl("delete_queue", "nowhere")


async def test_it_raises_no_alarm_and_needs_no_big_disk(broker: PrivateBroker) -> None:
    assert await broker.ctl("eval", "rabbit_disk_monitor:get_disk_free_limit().") == "50000000\n"
    assert await broker.ctl("eval", "rabbit_alarm:get_alarms().") == "[]\n"


async def test_a_killed_broker_keeps_what_it_confirmed(broker: PrivateBroker) -> None:
    await publish(broker.amqp_url, "kept", b"first")
    await broker.restart()  # a quorum queue younger than about a second would be forgotten, see PrivateBroker
    await publish(broker.amqp_url, "kept", b"second")

    broker.kill()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", broker.port))
    await broker.start()

    assert [await take(broker.amqp_url, "kept"), await take(broker.amqp_url, "kept")] == [b"first", b"second"]


async def test_stop_and_start_may_be_said_twice_and_a_taken_port_is_named(broker: PrivateBroker) -> None:
    await broker.start()
    await broker.stop()
    await broker.stop()
    with pytest.raises(ServerError, match="not running"):
        _ = broker.pid
    broker.kill()
    with socket.create_server(("127.0.0.1", broker.port)), pytest.raises(ServerError, match=r"port .* taken"):
        await broker.start()
    await asyncio.gather(broker.start(), broker.start())
    assert broker.pid


async def test_a_given_folder_keeps_its_queues_and_no_process(tmp_path: Path, processes_in: Processes) -> None:
    async with PrivateBroker(tmp_path) as first:
        await publish(first.amqp_url, "kept", b"over the end")
    assert processes_in(tmp_path) == {}
    async with PrivateBroker(tmp_path) as second:
        assert await take(second.amqp_url, "kept") == b"over the end"
    assert processes_in(tmp_path) == {}
    with pytest.raises(ServerError, match="cannot be started again"):
        await second.start()


async def test_a_cancelled_start_leaves_nothing(processes_in: Processes) -> None:
    broker = PrivateBroker()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5), broker:
            pytest.fail("RabbitMQ does not start in half a second")
    assert not broker.folder.exists()
    assert processes_in(broker.folder) == {}


async def test_a_failed_start_tells_the_log(tmp_path: Path, processes_in: Processes) -> None:
    (tmp_path / "data").write_text("a file where RabbitMQ wants a folder")
    with pytest.raises(ServerError, match=r"RabbitMQ ended with \d+ while starting\n.*\S"):
        await PrivateBroker(tmp_path).__aenter__()
    assert processes_in(tmp_path) == {}


def test_nothing_outlives_a_killed_owner(processes_in: Processes) -> None:
    program = (
        "import time\n"
        "from worker.sandbox.broker import PrivateBroker\n"
        "with PrivateBroker() as broker:\n"
        "    print(broker.folder, flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        folder = Path(owner.stdout.readline().strip())
        assert "beam.smp" in processes_in(folder).values()
        owner.send_signal(signal.SIGKILL)
    wait_until(
        lambda: not folder.exists() and not processes_in(folder),
        timeout_s=20,
        otherwise=lambda: f"left behind: {processes_in(folder)}, {folder}",
    )


def test_a_missing_server_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(broker_module, "_DEBIAN_SCRIPTS", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerError, match=r"^rabbitmq-server was not found: .*apt-get install rabbitmq-server`$"):
        PrivateBroker()


def test_free_ports_are_different_and_no_clients_own() -> None:
    low, _high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    ports = free_ports(50)
    assert len(set(ports)) == 50
    assert max(ports) < max(low, 32_768)
