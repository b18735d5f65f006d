"""Workers that die or freeze where they are told to, one life at a time, and the places where they can."""

import ast
import asyncio
import functools
import json
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import worker
from tests.fork_server import fork_python
from tests.harness import Shop, dead_letters, until
from worker.sandbox.stripe_control import SandboxControl

Order = Callable[[str], dict[str, Any]]

SCENARIOS: dict[str, Order] = {
    "created": lambda order_id: {"order_id": order_id, "amount": "12.50"},
    "queued": lambda order_id: {"order_id": order_id, "amount": "12.50"},
    "declined": lambda order_id: {
        "order_id": order_id,
        "amount": "12.50",
        "confirm": True,
        "payment_method": "pm_card_chargeDeclined",
    },
    "adopted": lambda order_id: {"order_id": order_id, "amount": "12.50", "customer_id": "cus_1"},
    "absent": lambda order_id: {"order_id": order_id, "amount": "12.50"},
    "bad": lambda order_id: {"order_id": order_id, "amount": "12.505"},
}
# What the lives of a scenario are asked for besides.
LIVES: dict[str, dict[str, Any]] = {
    "queued": {"constants": {"pace.BURST_S": -0.05}}
}  # no turn is due: each is waited for
# A death is waited for no longer.
LIFE_S = 30
# Nor where its work is over, after which it may still die at what comes last.
OVER_S = 2
# A place that was missed is tried again, with an order of its own.
TRIES = 3
# What is seen outside the process, or outlives it.
EFFECTS = (
    "ledger.run",
    "_gateway.",
    "await ask()",
    "_outgoing.",
    "_publisher.",
    ".publish(",
    ".basic_publish(",
    ".ack()",
)


class Mortals:
    """A worker's lives, one at a time."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self._environment = environment | {"CLAIM_TTL": "0.5"}
        self._log = log
        self._request = ""
        self._life: subprocess.Popen[bytes] | None = None

    async def start(self, **request: Any) -> None:
        """A life; see mortal_worker for what may be asked of it."""
        self._request = json.dumps(request)
        arguments = ("-m", "tests.crash.mortal_worker", self._request)
        with self._log.open("ab") as log:
            self._life = fork_python(arguments, self._environment, stdout=log.fileno(), stderr=log.fileno())

    async def death(self) -> int:
        """The exit code of the life that was started last."""
        return int(await self._until(self.life.poll, is_there=lambda code: code is not None))

    async def dies(self, *, unless: Callable[[], object]) -> bool:
        """Whether the life that was started last kills itself; False, and it is stopped, where its work is over first.

        Its work may take another way than it was recorded on: others may wait for turns, or two events change places.
        """
        over_at = 0.0

        def is_over() -> str | None:
            nonlocal over_at
            if self.life.poll() is not None:
                return "ended"
            if not unless():
                return None
            over_at = over_at or time.monotonic()
            return "over" if time.monotonic() - over_at > OVER_S else None

        if await self._until(is_over, is_there=lambda state: state is not None) == "ended":
            return self.life.returncode == -signal.SIGKILL
        await self.stop()
        return False

    async def is_frozen(self) -> bool:
        """Waits for its freeze; False where it ended instead."""
        state = await self._until(self._state, is_there=lambda state: state in ("T", "ended"))
        return bool(state == "T")

    def wake(self) -> None:
        self.life.send_signal(signal.SIGCONT)

    async def stop(self) -> int:
        self.life.send_signal(signal.SIGTERM)
        return await self.death()

    def end(self) -> None:
        """Whatever it is at."""
        if self._life:
            self._life.kill()
            self._life.wait(10)

    @property
    def life(self) -> subprocess.Popen[bytes]:
        assert self._life is not None
        return self._life

    def _state(self) -> str:
        """As /proc names it: T is stopped."""
        if self.life.poll() is not None:
            return "ended"
        try:
            return Path(f"/proc/{self.life.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return "ended"

    async def _until(self, look: Callable[[], Any], *, is_there: Callable[[Any], bool]) -> Any:
        end = time.monotonic() + LIFE_S
        while not is_there(found := look()):
            if time.monotonic() > end:
                raise AssertionError(f"nothing came of {self._request}\n{self._log.read_text()[-3000:]}")
            await asyncio.sleep(0.005)
        return found


async def keep_errors(stripe: SandboxControl) -> None:
    """The first call of some is answered with an error that Stripe keeps: with an intent behind it, and without."""
    await stripe.add_fault("stored_500", method="POST", order_id="*adopted*", with_object=True, times=1_000_000)
    await stripe.add_fault("stored_500", method="POST", order_id="*absent*", idempotency_key="*:1", times=1_000_000)


async def lines_of_each_scenario(mortals: Mortals, shop: Shop, folder: Path, reply_to: str) -> dict[str, list[str]]:
    """The lines that an order of each scenario passes through, in their order."""
    found: dict[str, list[str]] = {}
    for scenario, make in SCENARIOS.items():
        order_id, record = f"first-{scenario}", folder / f"{scenario}.json"
        await mortals.start(order_id=order_id, record=str(record), **LIVES.get(scenario, {}))
        await shop.send(make(order_id), reply_to=reply_to, message_id=order_id)
        await until(lambda: order_id in replied(shop), what="the reply")  # noqa: B023 - used at once
        await until(lambda: is_empty(shop), what="the queue to be empty")
        assert await mortals.stop() == 0
        found[scenario] = json.loads(record.read_text())
    return found


def without_repetition(lines: dict[str, list[str]]) -> dict[str, list[str]]:
    """A line of an earlier scenario is not named again."""
    known: set[str] = set()
    once: dict[str, list[str]] = {}
    for scenario, of_it in lines.items():
        once[scenario] = [line for line in of_it if line not in known]
        known.update(of_it)
    return once


def named_after(place: str) -> str:
    """A place as a part of an order id."""
    return place.replace("/", ".").replace(".py:", "-")


def round_effects(lines: Sequence[str]) -> list[str]:
    """Of the lines of a life, those that are about to have an effect, and those that come next in the same file.

    Inside a transaction there is none: it is one effect, whole or not at all.
    """
    outside = [line for line in lines if not line.startswith("ledger/")]
    places = [(line, _next_in_file(outside, line)) for line in outside if any(map(_text(line).__contains__, EFFECTS))]
    return list(dict.fromkeys(place for pair in places for place in pair if place))


def line_after(lines: Sequence[str], text: str) -> str:
    """Where the file of the statement that holds the text goes on after it."""
    line = _next_in_file(lines, next(line for line in lines if text in _text(line)))
    assert line
    return line


def _next_in_file(lines: Sequence[str], line: str) -> str | None:
    name = line.partition(":")[0]
    return next((after for after in lines[lines.index(line) + 1 :] if after.startswith(f"{name}:")), None)


def _text(line: str) -> str:
    name, number = line.split(":")
    return _statements(name).get(int(number), "")


@functools.cache
def _statements(name: str) -> dict[int, str]:
    """The statements of one of the worker's files that hold no others, by the line where they start."""
    tree = ast.parse((Path(worker.__file__).parent / name).read_text())
    return {
        node.lineno: ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.stmt) and not any(isinstance(child, ast.stmt) for child in ast.iter_child_nodes(node))
    }


def replied(shop: Shop) -> set[str]:
    return {reply["order_id"] for _, reply in shop.replies}


def paid(sent: dict[str, list[str]]) -> list[str]:
    """The orders of which an event comes."""
    return [order_id for scenario in SCENARIOS if scenario != "bad" for order_id in sent[scenario]]


async def letters_are_taken_in(shop: Shop) -> None:
    """While a worker still lives."""
    await until(lambda: _is_drained(shop), what="the dead letters to be taken in")


async def _is_drained(shop: Shop) -> bool:
    return await shop.ready_count(shop.names["DEAD_LETTERS_QUEUE"]) == 0


async def one_each(shop: Shop, stripe: SandboxControl, environment: dict[str, str], sent: dict[str, list[str]]) -> None:
    """One intent and one event for each order, and a dead letter for each bad one."""
    assert shop.events_per_order() == Counter(dict.fromkeys(paid(sent), 1))
    intents = Counter(intent["metadata"]["order_id"] for intent in await stripe.intents(limit=10_000))
    assert intents == Counter(dict.fromkeys(paid(sent), 1))
    letters = [letter["order_id"] for letter in await dead_letters(environment)]
    assert set(letters) == set(sent["bad"])


async def is_empty(shop: Shop) -> bool:
    return await shop.ready_count(shop.names["ORDERS_QUEUE"]) == 0
