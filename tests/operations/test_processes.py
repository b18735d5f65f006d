"""`run --processes N`: several workers behind one command, which live and stop together."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import Shop, WorkerProcess, run_cli, until

RUN_TWO = ("-m", "worker", "run", "--processes", "2")


def children(worker: WorkerProcess) -> list[int]:
    pid = worker.process.pid
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def is_alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


async def until_both_subscribed(worker: WorkerProcess) -> list[int]:
    await until(lambda: len(worker.said("consumer.subscribed")) == 2, what="both to subscribe")
    return children(worker)


async def test_two_processes_share_the_orders_and_stop_together(
    make_worker: Callable[..., WorkerProcess], shop: Shop
) -> None:
    await shop.subscribe()
    worker = make_worker(command=RUN_TWO)
    pids = await until_both_subscribed(worker)
    assert len({line["http"] for line in worker.said("worker.started")}) == 2
    await shop.send_all([{"order_id": f"o-{number}", "amount": "12.50"} for number in range(100)])
    await shop.until_events(100)
    decided = worker.said("payment.intent_created")
    assert len({line["order_id"] for line in decided}) == len(decided) == 100
    assert len({line["worker"] for line in decided}) == 2, "both had a share"
    assert await worker.stop() == 0
    assert not [pid for pid in pids if is_alive(pid)]
    assert len(worker.said("worker.stopped")) == 2


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
async def test_where_one_ends_by_itself_the_other_is_stopped(
    number: signal.Signals, make_worker: Callable[..., WorkerProcess], shop: Shop
) -> None:
    worker = make_worker(command=RUN_TWO)
    pids = await until_both_subscribed(worker)
    os.kill(pids[0], number)
    assert await worker.exit_code() == (128 + number if number is signal.SIGKILL else 0)
    [ended] = worker.said("process.ended")
    assert ended["pid"] == pids[0]
    assert ended.get("signal") == ("SIGKILL" if number is signal.SIGKILL else None)
    assert not [pid for pid in pids if is_alive(pid)]
    assert len(worker.said("worker.stopped")) == (1 if number is signal.SIGKILL else 2), "the other in good order"


async def test_a_parent_that_is_killed_leaves_nobody_behind(
    make_worker: Callable[..., WorkerProcess], shop: Shop
) -> None:
    worker = make_worker(command=RUN_TWO)
    pids = await until_both_subscribed(worker)
    worker.kill()
    await until(lambda: not [pid for pid in pids if is_alive(pid)], what="both to end")
    assert len(worker.said("worker.stopped")) == 2


async def test_a_second_signal_ends_them_at_once(make_worker: Callable[..., WorkerProcess], shop: Shop) -> None:
    worker = make_worker(command=RUN_TWO, STRIPE_RATE_LIMIT="1", DRAIN_TIMEOUT="60")
    await until_both_subscribed(worker)
    await shop.send_all([{"order_id": f"o-{number}", "amount": "12.50"} for number in range(50)])
    await until(lambda: worker.said("payment.intent_created"), what="work to be under way")
    worker.process.send_signal(signal.SIGINT)
    await until(lambda: len(worker.said("worker.stopping")) == 2, what="both to stop")
    worker.process.send_signal(signal.SIGINT)
    assert await worker.exit_code(10) in (0, 128 + signal.SIGINT)


@pytest.mark.parametrize(
    ("words", "settings", "says"),
    [
        (("--processes", "0"), {}, "at least 1"),
        (("--processes", "many"), {}, "invalid"),
        (("--processes", "3"), {"HTTP_PORT": "65534"}, "HTTP_PORT: 65534 leaves no port for process 3"),
    ],
)
async def test_words_that_cannot_be_met_are_refused(
    words: tuple[str, ...], settings: dict[str, str], says: str, environment: dict[str, str]
) -> None:
    done = await asyncio.to_thread(run_cli, environment | settings, "run", *words)
    assert done.returncode == 2
    assert says in done.stderr
