"""The README keeps its word: settings, files, commands, and a subscriber that works as it is printed."""

import asyncio
import re
import sys
from collections.abc import Callable
from pathlib import Path

from schemas import AmqpProperties, read_order_created
from tests.harness import Shop, WorkerProcess, run_cli
from worker.process_order import _DEAD_LETTERS
from worker.settings import SETTING_NAMES, Settings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_table_of_settings_is_complete_and_its_defaults_are_true() -> None:
    table = README.partition("## Settings")[2].partition("## Messages")[0]
    rows = re.findall(r"^\| (`.+?) \| (.+?) \|", table, re.MULTILINE)
    told: dict[str, str] = {}
    for names, defaults in rows:
        values = defaults.split(", ")
        told |= dict(zip(re.findall(r"`(\w+)`", names), values + [""] * 9, strict=False))

    assert told.keys() == {name for name in SETTING_NAMES if not name.endswith("_FILE")}
    for name, field in Settings.model_fields.items():
        shown = re.fullmatch(r"`(.+)`", told[name.upper()])
        default = field.default.get_secret_value() if hasattr(field.default, "get_secret_value") else field.default
        if shown:
            assert shown[1] == str(default), name


def test_every_file_that_it_names_is_there() -> None:
    named = set(re.findall(r"`((?:worker|schemas|tests)/[\w/.]*)`", README))

    assert len(named) > 15
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_example_order_is_one() -> None:
    body = re.search(r"```json\n(.+?)\n```", README)
    assert body

    _, order = read_order_created(body[1].encode(), AmqpProperties())

    assert (order.order_id, order.amount_minor) == ("order-1001", 9999)


def test_every_reason_of_a_dead_letter_is_explained() -> None:
    table = README.partition("| reason | means |")[2].partition("\n\n")[0]
    explained = {
        reason for row in re.findall(r"^\| (.+?) \|", table, re.MULTILINE) for reason in re.findall(r"`(\w+)`", row)
    }
    spine = (ROOT / "worker" / "process_order.py").read_text()
    given = set(_DEAD_LETTERS.values()) | set(re.findall(r'DeadLetter\("(\w+)"', spine))

    assert len(given) == 10
    assert given - explained == set()


def test_every_command_of_the_table_exists(environment: dict[str, str]) -> None:
    table = README.partition("| command | does |")[2].partition("\n\n")[0]
    told = re.findall(r"^\| `(.+?)` \|", table, re.MULTILINE)
    commands = [[word for word in row.split(" [")[0].split() if not word.isupper()] for row in told]

    assert len(commands) == 17
    for words in commands:
        assert run_cli(environment, *words, "--help").returncode == 0, words


async def test_the_publisher_and_the_subscriber_work_as_they_are_printed(
    make_worker: Callable[..., WorkerProcess], shop: Shop, environment: dict[str, str], tmp_path: Path
) -> None:
    """Only the names are changed, to those of this test."""
    publisher, subscriber_text = re.findall(r"```python\n(.+?)```", README, re.DOTALL)
    queue = f"{environment['ORDERS_QUEUE']}.fulfilment"
    program = subscriber_text.replace('"payments"', repr(environment["PAYMENTS_EXCHANGE"]))
    program = program.replace('"fulfilment"', repr(queue))
    file = tmp_path / "subscriber.py"
    file.write_text(program)
    subscriber = await asyncio.create_subprocess_exec(
        sys.executable,
        str(file),
        env=environment | {"PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
    )
    assert subscriber.stdout
    try:
        await make_worker().until_subscribed()
        declined = {"confirm": True, "payment_method": "pm_card_chargeDeclined"}
        await _run(publisher.replace('"orders"', repr(environment["ORDERS_EXCHANGE"])), environment)
        await shop.send({"order_id": "order-2", "amount": "500", "currency": "jpy", **declined})
        told = {(await asyncio.wait_for(subscriber.stdout.readline(), 30)).decode().strip() for _ in range(2)}
    finally:
        subscriber.kill()
        await subscriber.wait()
        await shop.channel.queue_delete(queue)

    assert told == {"payment.intent_created order-1001 99.99 usd", "payment.failed order-2 500 jpy"}


async def _run(program: str, environment: dict[str, str]) -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, env=environment)
    assert await process.wait() == 0
