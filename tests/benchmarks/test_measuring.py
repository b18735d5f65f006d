"""The instruments of the benchmark: a figure that its instrument has wrong helps nobody."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import pytest
import sqlalchemy as sa

from tests.benchmarks.contenders import FASTSTREAM, WORKER_SQLITE
from tests.benchmarks.drain import Drained
from tests.benchmarks.growth import multiply
from tests.benchmarks.processes import family, peak_mib, processor_seconds, resident_mib
from tests.benchmarks.results import Results, bars
from tests.benchmarks.stage import new_order_id
from tests.benchmarks.stripe_tap import tapped
from tests.ledger.steps import decide
from worker.ledger.ledger import Ledger
from worker.ledger.migrate import migrate
from worker.ledger.schema import EVENTS, OPERATIONS, PAYMENTS
from worker.sandbox.stripe_control import SandboxControl
from worker.sandbox.stripe_server import RunningSandbox

LOCK, BENCHMARK_LOCK = Path("requirements.txt"), Path("tests/benchmarks/requirements.txt")
# Half a second of work and 64 MiB in a child; then it lets that go and waits.
BUSY_PARENT = """
import subprocess, sys, time
child = '''
import time
held = bytearray(64 * 1024 * 1024); held[::4096] = b"x" * len(held[::4096])
while time.process_time() < 0.5: pass
del held
print("done", flush=True)
time.sleep(60)
'''
subprocess.run([sys.executable, "-c", child])
"""


def test_processor_time_and_memory_of_a_child_count() -> None:
    began = time.monotonic()
    with subprocess.Popen([sys.executable, "-c", BUSY_PARENT], stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout
            assert parent.stdout.readline() == "done\n"
            lasted_s = time.monotonic() - began
            assert 0.5 <= processor_seconds(parent.pid) <= lasted_s + 0.02  # by the kernel's ticks, two of each
            assert peak_mib(parent.pid) >= resident_mib(parent.pid) + 60
        finally:
            for each in family(parent.pid):
                os.kill(each, signal.SIGKILL)


async def test_the_tap_knows_stripes_time_for_each_order(sandbox: RunningSandbox, stripe: SandboxControl) -> None:
    took_s: dict[str, float] = {}
    async with tapped(sandbox.base_url) as (tap, url), aiohttp.ClientSession() as session:
        for order_id, latency_s in (("o-slow", 0.2), ("o-fast", 0.0)):
            await stripe.change_settings(latency_s=latency_s)
            began = time.monotonic()
            form = {"amount": "100", "currency": "eur", "metadata[order_id]": order_id}
            headers = {"Authorization": "Bearer sk_test_tap"}
            async with session.post(f"{url}/v1/payment_intents", data=form, headers=headers) as answer:
                assert (await answer.json())["metadata"] == {"order_id": order_id}
            took_s[order_id] = time.monotonic() - began
    assert 0.2 <= tap.stripe_s["o-slow"] <= took_s["o-slow"]
    assert 0 < tap.stripe_s["o-fast"] <= min(took_s["o-fast"], tap.stripe_s["o-slow"] - 0.1)


async def test_a_multiplied_ledger_has_each_payment_with_its_own_call_and_event(ledger_url: str) -> None:
    async with Ledger(ledger_url) as ledger:
        migrate(ledger.engine)
        for _ in range(3):
            await decide(ledger, new_order_id())
        multiply(ledger_url, 40)
        with ledger.engine.connect() as conn:
            orders = set(conn.scalars(sa.select(PAYMENTS.c.order_id)))
            calls = conn.execute(sa.select(OPERATIONS.c.order_id, OPERATIONS.c.idempotency_key)).all()
            events = conn.execute(sa.select(EVENTS.c.order_id, EVENTS.c.event_id, EVENTS.c.body)).all()
    assert len(orders) == 3 * 40
    assert {call.order_id for call in calls} == {event.order_id for event in events} == orders
    assert all(call.order_id in call.idempotency_key for call in calls)
    assert all(json.loads(event.body)["subject"] == event.order_id for event in events)


@pytest.mark.parametrize(("cpu_us", "is_held"), [(600, True), (601, False)])
def test_a_bar_is_held_up_to_its_limit_by_the_medians(cpu_us: float, *, is_held: bool) -> None:
    ours = [Drained(1, each, 1, 1) for each in (1, cpu_us, 9000)]
    theirs = [Drained(1, each, 1, 1) for each in (1, 2000, 9000)]
    found = bars(Results(drain={WORKER_SQLITE.name: ours, FASTSTREAM.name: theirs}))
    assert [(each.is_held, each.bar) for each in found if each.what.startswith("CPU")] == [(is_held, 0.30)]


def test_the_worker_is_measured_with_the_versions_that_it_ships_with() -> None:
    """Where this fails: make lock."""
    assert _pins(LOCK) <= _pins(BENCHMARK_LOCK)


def _pins(lock: Path) -> set[str]:
    return {line.split()[0] for line in lock.read_text().splitlines() if "==" in line and not line.startswith("#")}
