"""The README keeps its word: settings, files, commands, messages, figures, and a publisher that works as printed.

Its subscribers are tried in tests/road/test_subscribers.py.
"""

import asyncio
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

from prometheus_client import generate_latest

from schemas import COMMAND_TYPES, EVENT_MODELS, AmqpProperties, read_command, read_order_created
from tests.harness import Shop, WorkerProcess, run_cli
from tests.stripe_story import BEGAN
from worker.metrics import Metrics
from worker.payment import Payment, PaymentState
from worker.payment_command import CommandKind, Refused, Request, decide
from worker.payment_life import Dispute, Life
from worker.process_order import _DEAD_LETTERS
from worker.receive_webhooks import PATH
from worker.settings import SETTING_NAMES, Settings
from worker.stripe_gateway import API_VERSION

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """The cells of the table that begins with the heading."""
    table = README.partition(f"\n| {heading} |")[2].partition("\n\n")[0]
    assert table, heading
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()[2:]]


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

    assert len(given) == 12
    assert given - explained == set()


def test_every_event_is_in_the_table() -> None:
    told = [row[0].strip("`") for row in rows("type | told when")]

    assert sorted(told) == sorted(EVENT_MODELS)


def test_the_example_commands_are_what_their_row_says_and_are_answered_by_events() -> None:
    table = rows("type | example of `data`")
    for kind, example, _, answers in table:
        event, command = read_command(example.strip("`").encode(), AmqpProperties(type=kind.strip("`")))
        assert event.type == kind.strip("`")
        assert command.order_id == "order-1001"
        assert set(re.findall(r"`((?:payment|refund)\.\w+)`", answers)) <= EVENT_MODELS.keys()

    assert {row[0].strip("`") for row in table} == COMMAND_TYPES


def test_every_code_of_a_refusal_is_explained() -> None:
    """Of all the payments that there may be, and all that may be asked of them."""
    payment = Payment("o-1", PaymentState.INTENT_CREATED, 1250, "usd", None, None, "pi_1", None, False, 1)
    statuses = ("requires_payment_method", "requires_capture", "succeeded", "canceled")
    asks = ({}, {"amount": "99"}, {"amount": "0.001"}, {"currency": "eur"})
    given = set()
    for status, asked, kind, received, is_disputed in product(statuses, asks, CommandKind, (0, 1250), (False, True)):
        dispute = Dispute("du_1", 1250, "usd", "needs_response", BEGAN)
        life = Life(
            replace(payment, status=status),
            capturable_minor=1250,
            received_minor=received,
            disputes={"du_1": dispute} if is_disputed else {},
        )
        answer = decide(Request("o-1", "r-1", kind, asked, None, None, None), life)
        given |= {answer.code} if isinstance(answer, Refused) else set()
    failed = decide(
        Request("o-1", "r-1", CommandKind.CANCEL, {}, None, None, None), Life(replace(payment, payment_id=None))
    )
    given |= {failed.code} if isinstance(failed, Refused) else set()

    explained = {row[0].partition(",")[0].strip("`") for row in rows("code | refused")}
    assert given | {"refused"} == explained


def test_the_endpoint_is_set_up_for_all_that_is_read_and_in_our_version() -> None:
    command = re.search(r"curl https://api.stripe.com/v1/webhook_endpoints.+?\n```", README, re.DOTALL)
    assert command
    chosen = re.findall(r"enabled_events\[\]=([\w.]+)", command[0])
    life = (ROOT / "worker" / "payment_life.py").read_text()
    read = set(re.findall(r"\"((?:payment_intent|charge\.dispute)\.\w+)\"", life)) - {"payment_intent.created"}

    assert len(read) > 5
    assert read <= set(chosen)
    assert f"api_version={API_VERSION}" in command[0]
    assert PATH in command[0]


def test_every_figure_that_it_names_is_measured() -> None:
    told = re.findall(r"`((?:payment_worker_|…)\w+)(?:\{[^`]*\})?`", README.partition("## On call")[2])
    named = {name.replace("…", "payment_worker_") for name in told}
    measured = set(re.findall(r"^# TYPE (\w+)", generate_latest(Metrics().registry).decode(), re.MULTILINE))

    assert len(named) > 20
    assert named - measured == set()


def test_every_command_of_the_table_exists(environment: dict[str, str]) -> None:
    table = README.partition("| command | does |")[2].partition("\n\n")[0]
    told = re.findall(r"^\| `(.+?)` \|", table, re.MULTILINE)
    commands = [[word for word in row.split(" [")[0].split(" --")[0].split() if not word.isupper()] for row in told]

    assert len(commands) == 19
    for words in commands:
        assert run_cli(environment, *words, "--help").returncode == 0, words


async def test_the_publisher_works_as_it_is_printed(
    make_worker: Callable[..., WorkerProcess], shop: Shop, environment: dict[str, str]
) -> None:
    """Only the exchange is changed, to that of this test."""
    [publisher] = [text for text in re.findall(r"```python\n(.+?)```", README, re.DOTALL) if '"order.created"' in text]
    await shop.subscribe("#")
    await make_worker().until_subscribed()

    await _run(publisher.replace('"orders"', repr(environment["ORDERS_EXCHANGE"])), environment)

    [event] = await shop.until_events(1)
    assert (event["type"], event["data"]["order_id"], event["data"]["cause"]) == (
        "payment.intent_created",
        "order-1001",
        "event-1",
    )


async def _run(program: str, environment: dict[str, str]) -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, env=environment)
    assert await process.wait() == 0
