"""The whole thing on this machine, with no account: orders become payments, and a kill in the middle changes nothing.

Whether it came out as promised is told from outside: by Stripe's own list, the fulfilment service's queue and the
dead letters, never by the worker's ledger.
"""

import asyncio
import contextlib
import logging
import secrets
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from aio_pika.exceptions import AMQPError

from worker.sandbox.demo_screen import Screen
from worker.sandbox.demo_stage import Choice, open_stage, read_choice
from worker.sandbox.demo_story import ORDERS, open_story
from worker.sandbox.demo_worker import DemoFailed
from worker.sandbox.private_server import ServerError
from worker.sandbox.stripe_control import SandboxError


async def demo(environment: Mapping[str, str]) -> int:
    """Play it; returns 0 only if everything came out as promised, else 1 and says what did not.

    AMQP_URL and STRIPE_API_KEY (a test key) replace the private broker and the sandbox; no other setting is read.
    Raises ConfigurationError for a live key. Everything started is stopped again, on SIGINT and SIGTERM too.
    """
    choice, screen, run_id = read_choice(environment), Screen(), secrets.token_hex(2)
    for library in ("aio_pika", "aiormq"):
        logging.getLogger(library).setLevel(logging.CRITICAL)  # a broker that is away is told by us
    # asyncio.run makes a cancellation of SIGINT, which cleans up; SIGTERM is to do the same.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, signal.raise_signal, signal.SIGINT)
    screen.title("payment-worker demo", "orders on RabbitMQ become PaymentIntents at Stripe")
    try:
        faults = await _play(choice, environment, screen, run_id)
    except asyncio.CancelledError:
        screen.stopped()
        raise
    if faults:
        return 1
    screen.next_steps(_next_steps(has_key=choice.stripe_key is not None))
    return 0


async def _play(choice: Choice, environment: Mapping[str, str], screen: Screen, run_id: str) -> list[str]:
    """From the first thing started to the last one stopped; returns what did not come out as promised, told already."""
    async with contextlib.AsyncExitStack() as stack:
        try:
            with screen.waiting("setting the stage"):
                stage = await stack.enter_async_context(open_stage(choice, environment, run_id=run_id))
        except ServerError as error:
            screen.wrong([str(error)])
            return [str(error)]
        try:
            async with open_story(stage, screen, run_id) as story:
                faults, played = await story.tell(), len(story.played)
        except (DemoFailed, SandboxError, AMQPError, ConnectionError, TimeoutError) as error:
            faults = [str(error) or type(error).__name__]
        if faults:
            screen.wrong(faults, log=stage.worker.keep_log())
            return faults
        count = len(ORDERS)
        verdict = [f"{count} orders, {count} intents, {count} events, 1 dead letter: nothing twice, nothing lost."]
        if played:
            verdict += [f"1 payment paid, settled, refunded in part, disputed: {played} events, 1 refund."]
        screen.verdict(verdict)
        if stage.stripe.control is None:
            screen.say(f"The intents stay in your Stripe test account, as order {run_id}-01 and so on.")
        return []


def _next_steps(*, has_key: bool) -> list[tuple[str, str]]:
    """Commands as they can be typed here."""
    script, here = Path(sys.executable).with_name("payment-worker"), Path.cwd()
    if shutil.which("payment-worker"):
        program = "payment-worker"
    elif script.exists() and script.is_relative_to(here):
        program = str(script.relative_to(here))
    else:
        program = "python -m worker"
    broker = (f"AMQP_URL=amqp://… {program} demo", "the same on a RabbitMQ of yours, which is left as it was")
    stripe = (f"STRIPE_API_KEY=sk_test_… {program} demo", "the same with Stripe's own test mode")
    return [
        broker if has_key else stripe,
        (f"{program} check", "whether your own settings are in order"),
        (f"{program} --help", "everything else"),
    ]
