import asyncio
import fcntl
import os
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import aio_pika
import pytest

from worker.sandbox import broker as broker_module
from worker.sandbox.broker import PrivateBroker
from worker.sandbox.demo import demo
from worker.sandbox.demo_stage import StripeSide
from worker.sandbox.demo_verdict import SeenIntent
from worker.sandbox.private_server import wait_until
from worker.sandbox.stripe_server import running_sandbox

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "worker", "demo"]
LIMIT_S = 60
ROW = re.compile(r"^ +[0-9a-f]{4}-\d\d +[\d.]+ [A-Z]{3} +(\w+) +pi_\S+ +1 +1 (created|failed) *$", re.MULTILINE)
VERDICT = "10 orders, 10 intents, 10 events, 1 dead letter: nothing twice, nothing lost."
LIFE = (
    ("payment", "received 1250.00 USD", "payment.succeeded"),
    ("settlement", "fee 36.55, net 1213.45 USD", "payment.settled"),
    ("refund", "refunded 250.00 USD", "payment.refunded"),
    ("dispute", "disputed 1000.00 USD", "payment.dispute_opened"),
)
LIFE_VERDICT = "1 payment paid, settled, refunded in part, disputed: 4 events, 1 refund."
LEFT_OUT = "   Refunds, disputes and the like are left out: no webhook reaches this machine.\n"
LeftBehind = Callable[[], list[str]]


def run(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        COMMAND, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


def must_have_gone_well(output: str) -> None:
    rows = ROW.findall(output)
    assert sorted(event for _, event in rows) == ["created"] * 9 + ["failed"], output
    assert sorted({status for status, _ in rows}) == ["requires_payment_method", "succeeded"]
    assert VERDICT in output
    assert not re.search(r"_secret_[A-Za-z0-9]|(sk|rk)_test_[A-Za-z0-9]|whsec_", output)


def must_have_shown_a_payments_life(output: str) -> None:
    at = 0
    for what, amounts, kind in LIFE:
        heard = re.compile(rf"^ +← [0-9a-f]{{4}}-07  {re.escape(kind)} +{amounts} *$", re.MULTILINE).search(output, at)
        assert heard, f"{kind} was not heard, or not in its turn:\n{output}"
        at = heard.end()
        short = kind.removeprefix("payment.")
        assert re.search(rf"^ +[0-9a-f]{{4}}-07 +{what} +{amounts} +1 +1 {short} *$", output, re.MULTILINE), output
    assert re.search(r"^ +→ [0-9a-f]{4}-07 +250\.00 USD  refund\.requested *$", output, re.MULTILINE)
    assert re.search(r"^ +→ [0-9a-f]{4}-07 +250\.00 USD  the same request again *$", output, re.MULTILINE)
    assert re.search(r"The refund of [0-9a-f]{4}-07 was asked for twice, and Stripe has made 1\.", output)
    assert LIFE_VERDICT in output
    assert LEFT_OUT not in output


def test_without_a_terminal_it_ends_well_in_plain_lines_and_leaves_nothing(
    clean: dict[str, str], left_behind: LeftBehind
) -> None:
    done = run(clean)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    must_have_gone_well(done.stdout)
    must_have_shown_a_payments_life(done.stdout)
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert re.search(r"Dead letter +[0-9a-f]{4}-11, bad_message: amount: 10.005 does not fit USD", done.stdout)
    assert re.search(r"Worker \d+ killed: Stripe has 1 intent for [0-9a-f]{4}-07, and 0 events are out", done.stdout)
    assert "asked Stripe again" in done.stdout
    assert left_behind() == []


@pytest.mark.parametrize("columns", [80, 120])
def test_on_a_terminal_it_has_colours_and_fits(clean: dict[str, str], left_behind: LeftBehind, columns: int) -> None:
    code, output = run_on_a_terminal(clean, columns)
    assert code == 0, output
    assert "\x1b[32m" in output
    assert output.count("\x1b[?25l") == output.count("\x1b[?25h") > 0, "the cursor must be seen again"
    bare = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output).replace("\r\n", "\n")
    bare = re.sub(r"^.*\r", "", bare, flags=re.MULTILINE)  # a bar that was written over
    must_have_gone_well(bare)
    must_have_shown_a_payments_life(bare)
    assert max(map(len, bare.splitlines())) <= columns
    assert bool(re.search(r"pi_\w{20}", bare)) == (columns == 120), "whole intent ids where there is room"
    assert left_behind() == []


def test_settings_of_a_worker_of_ones_own_are_not_used(clean: dict[str, str], tmp_path: Path) -> None:
    foreign = {"DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path}/mine.db", "ORDERS_QUEUE": "mine", "HTTP_PORT": "1"}
    done = run(clean | foreign)
    assert done.returncode == 0, done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["sk_live_abcdefgh", "rk_live_abcdefgh"])
def test_a_live_key_is_refused_in_a_sentence(clean: dict[str, str], left_behind: LeftBehind, key: str) -> None:
    done = run(clean | {"STRIPE_API_KEY": key})
    assert done.returncode == 2
    assert re.fullmatch(r"payment-worker: STRIPE_API_KEY is a live key, .*test key.*\n", done.stderr)
    assert key not in done.stdout + done.stderr
    assert left_behind() == []


async def test_a_given_broker_is_used_and_left_as_it_was(clean: dict[str, str], broker: PrivateBroker) -> None:
    async with await aio_pika.connect(broker.amqp_url) as connection, connection.channel() as channel:
        mine = await channel.declare_queue("payment-worker.orders", durable=True)
        await channel.default_exchange.publish(aio_pika.Message(b"mine"), mine.name)
    before = await what_is_there(broker)
    assert "payment-worker.orders\t1" in before

    done = await asyncio.to_thread(run, clean | {"AMQP_URL": broker.amqp_url})

    assert done.returncode == 0, done.stdout
    must_have_gone_well(done.stdout)
    must_have_shown_a_payments_life(done.stdout)
    assert "guest:guest" not in done.stdout
    assert await what_is_there(broker) == before


async def test_with_a_test_key_it_uses_that_stripe_and_kills_at_the_first_event(
    clean: dict[str, str], broker: PrivateBroker
) -> None:
    async with running_sandbox(latency_s=(0.0, 0.3)) as outside:
        given = {"STRIPE_API_KEY": "rk_test_outside", "STRIPE_API_BASE": outside.base_url, "AMQP_URL": broker.amqp_url}
        done = await asyncio.to_thread(run, clean | given)
        stats = await outside.control.stats()
    assert done.returncode == 0, done.stdout
    must_have_gone_well(done.stdout)
    assert re.search(r"Worker \d+ killed: \d of 4 events are out", done.stdout)
    assert done.stdout.count(LEFT_OUT) == 1
    assert not re.search(r"payment\.(succeeded|settled|refunded|dispute_opened)|refund\.requested", done.stdout)
    assert LIFE_VERDICT not in done.stdout
    assert (stats["intents"], stats["orders"], stats["faults_fired"]) == (10, 10, {})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_stopped_demo_cleans_up(
    clean: dict[str, str], broker: PrivateBroker, left_behind: LeftBehind, number: signal.Signals
) -> None:
    before = await what_is_there(broker)
    with started(clean | {"AMQP_URL": broker.amqp_url}) as process:
        read_until(process, r"Worker \d+ killed")
        process.send_signal(number)
        rest, complaints = process.communicate()
    assert (process.returncode, complaints) == (1, "")
    assert "Stopped." in rest
    assert left_behind() == []
    assert await what_is_there(broker) == before


def test_a_killed_demo_leaves_no_process_and_no_folder(clean: dict[str, str], left_behind: LeftBehind) -> None:
    with started(clean) as process:
        read_until(process, r"Worker \d+ started")
        process.kill()
    wait_until(lambda: not left_behind(), timeout_s=20, otherwise=lambda: f"left behind: {left_behind()}")


async def test_a_stripe_that_lies_is_found_out(
    broker: PrivateBroker,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    honest = StripeSide.intents

    async def twice(self: StripeSide, *, order_prefix: str) -> list[SeenIntent]:
        seen = await honest(self, order_prefix=order_prefix)
        return [*seen, *(intent for intent in seen if intent.order_id.endswith("-03"))]

    monkeypatch.setattr(StripeSide, "intents", twice)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    assert await demo({**os.environ, "AMQP_URL": broker.amqp_url}) == 1

    told = capsys.readouterr().out
    assert re.search(r"^   - [0-9a-f]{4}-03: 2 intents at Stripe, promised was one$", told, re.MULTILINE)
    assert VERDICT not in told
    assert "What to try next" not in told
    (log,) = files_in(tmp_path)
    assert told.endswith(f"The worker's log is kept:\n   {log}\n")
    assert '"event": "worker.started"' in log.read_text()


async def test_a_refund_made_twice_is_found_out(
    broker: PrivateBroker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    honest = StripeSide.facts

    async def twice(self: StripeSide, payment_id: str) -> dict[str, list[dict[str, int]]]:
        facts = await honest(self, payment_id)
        return facts | {"refund": facts["refund"] * 2}

    monkeypatch.setattr(StripeSide, "facts", twice)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    assert await demo({**os.environ, "AMQP_URL": broker.amqp_url}) == 1

    told = capsys.readouterr().out
    assert re.search(r"^   - [0-9a-f]{4}-07: 2 refunds at Stripe, promised was one$", told, re.MULTILINE)
    assert VERDICT not in told
    assert LIFE_VERDICT not in told


async def test_a_worker_that_does_not_start_is_told_with_its_last_words(
    broker: PrivateBroker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert await demo({**os.environ, "AMQP_URL": broker.amqp_url, "PYTHONHOME": str(tmp_path)}) == 1
    told = " ".join(capsys.readouterr().out.split())
    assert re.search(r"the worker ended by itself with 1; it said last: .*No module named 'encodings'", told)
    assert [log.suffix for log in files_in(tmp_path)] == [".log"]


async def test_a_missing_rabbitmq_is_said_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(broker_module, "_DEBIAN_SCRIPTS", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert await demo({"PATH": str(tmp_path)}) == 1
    told = " ".join(capsys.readouterr().out.split())
    assert "rabbitmq-server was not found: install RabbitMQ, on Debian or Ubuntu with `sudo apt-get install" in told


async def test_a_broker_that_is_not_there_is_said_without_its_password(
    clean: dict[str, str], left_behind: LeftBehind
) -> None:
    done = await asyncio.to_thread(run, clean | {"AMQP_URL": "amqp://me:hidden@127.0.0.1:1/"})
    assert (done.returncode, done.stderr) == (1, "")
    assert "there is no connection to the broker of AMQP_URL" in done.stdout
    assert "hidden" not in done.stdout
    assert left_behind() == []


def files_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def run_on_a_terminal(environment: dict[str, str], columns: int) -> tuple[int, str]:
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    written = bytearray()
    with subprocess.Popen(COMMAND, cwd=ROOT, env=environment, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        with deadline(process):
            try:
                while part := os.read(ours, 65536):
                    written += part
            except OSError:  # Linux tells the other side's end as EIO
                pass
            process.wait()
    os.close(ours)
    return process.returncode, written.decode()


@contextmanager
def started(environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    with (
        subprocess.Popen(
            COMMAND, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process,
        deadline(process),
    ):
        yield process


@contextmanager
def deadline(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> Iterator[None]:
    """A demo that hangs is killed, and the test fails by what it then reads."""
    timer = threading.Timer(LIMIT_S, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def read_until(process: subprocess.Popen[str], pattern: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if re.search(pattern, line):
            return
    pytest.fail(f"the demo ended before it said {pattern!r}")


async def what_is_there(broker: PrivateBroker) -> str:
    queues = await broker.ctl("list_queues", "name", "messages")
    return "\n".join(sorted((queues + await broker.ctl("list_exchanges", "name")).splitlines()))
