"""Words in, exit codes out. 0: done. 1: a fault was found, or the work failed. 2: wrong words or settings."""

import argparse
import asyncio
import gc
import json
import os
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from worker.desk.commands import add_desk, run_at_desk
from worker.errors import ConfigurationError, WorkerError

# Everything else is imported by the command that needs it: `--help` and `run` start fast.

# Python's own 700 has it search for garbage all through the imports, which make none: a tenth of the start.
GC_THRESHOLD: Final = 20_000

OK: Final = 0
FAULT: Final = 1
USAGE: Final = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    gc.set_threshold(GC_THRESHOLD)
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.command
    code = _code_of(partial(command, arguments))
    gc.freeze()  # or the end of the process searches all that was imported for garbage: a tenth of a second
    return code


def _code_of(work: Callable[[], int]) -> int:
    try:
        code = work()
        sys.stdout.flush()
    except ConfigurationError as error:
        _complain(error)
        return USAGE
    except WorkerError as error:
        _complain(error)
        return FAULT
    except KeyboardInterrupt:
        return FAULT
    except BrokenPipeError:
        # The reader of our output has gone (`… | head`); there is nobody left to complain to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="payment-worker",
        description="Turns order events on RabbitMQ into Stripe PaymentIntents: never twice, never lost.",
        epilog="Exit codes: 0 done; 1 a fault was found, or the work failed; 2 wrong words or settings. "
        "Settings come from the environment: see the README.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="consume orders until SIGTERM")
    run.add_argument(
        "--processes",
        type=_positive,
        default=1,
        metavar="N",
        help="workers, each a process of its own with its own port: HTTP_PORT, HTTP_PORT + 1, … (default 1)",
    )
    run.set_defaults(command=_run)

    check = commands.add_parser("check", help="are settings, broker, ledger and Stripe in order?")
    check.add_argument("--json", action="store_true", help="for programs: an array, one object for each part")
    check.set_defaults(command=_check)

    migrate = commands.add_parser("migrate", help="bring the ledger's schema up to date")
    migrate.set_defaults(command=_migrate)

    add_desk(commands, _desk)

    sandbox = commands.add_parser("sandbox", help="a stand-in for Stripe on this machine, for demos and tests")
    sandbox.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    sandbox.add_argument(
        "--port", type=int, default=12111, help="port to listen on; 0 takes a free one (default 12111)"
    )
    sandbox.set_defaults(command=_sandbox)

    demo = commands.add_parser("demo", help="the whole thing on this machine, with no account")
    demo.set_defaults(command=_demo)
    return parser


def _positive(word: str) -> int:
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _run(arguments: argparse.Namespace) -> int:
    from worker.app import run_worker  # noqa: PLC0415
    from worker.logs import configure_logging  # noqa: PLC0415
    from worker.run_processes import run_processes, settings_of  # noqa: PLC0415
    from worker.settings import read_settings  # noqa: PLC0415

    settings = read_settings(os.environ)
    as_json = settings.log_format == "json" if settings.log_format else not sys.stderr.isatty()
    configure_logging(level=settings.log_level, as_json=as_json)

    def run(number: int) -> int:
        asyncio.run(run_worker(each[number]))
        return OK

    each = [settings_of(settings, number) for number in range(arguments.processes)]
    if arguments.processes > 1:
        return run_processes(arguments.processes, lambda number: _code_of(partial(run, number)))
    run(0)
    if threading.active_count() > 1:
        # One that waits for a frozen database would hold up the end of the process for as long.
        sys.stderr.flush()
        os._exit(OK)
    return OK


def _check(arguments: argparse.Namespace) -> int:
    from worker.check import check  # noqa: PLC0415
    from worker.logs import configure_logging  # noqa: PLC0415

    configure_logging(level="error", as_json=False)
    findings = asyncio.run(check(os.environ))
    if arguments.json:
        _print_json([{"part": f.part, "ok": f.is_fine, "said": f.said} for f in findings])
    else:
        for finding in findings:
            print(f"{'✓' if finding.is_fine else '✗'} {finding.part}: {finding.said}")  # noqa: T201
    return OK if all(finding.is_fine for finding in findings) else FAULT


def _migrate(_: argparse.Namespace) -> int:
    from worker.ledger.engine import open_engine  # noqa: PLC0415
    from worker.ledger.migrate import migrate  # noqa: PLC0415
    from worker.settings import read_settings  # noqa: PLC0415

    settings = read_settings(os.environ, needed=frozenset({"DATABASE_URL"}))
    engine = open_engine(settings.database_url.get_secret_value())
    print(f"the ledger's schema is at {migrate(engine)}")  # noqa: T201
    return OK


def _desk(arguments: argparse.Namespace) -> int:
    return run_at_desk(arguments, os.environ)


def _sandbox(arguments: argparse.Namespace) -> int:
    from worker.sandbox.stripe_server import TEST_KEY, serve  # noqa: PLC0415

    def ready(base_url: str) -> None:
        print(f"the sandbox listens on {base_url}; for the worker, in its shell:")  # noqa: T201
        print(f"export STRIPE_API_BASE={base_url} STRIPE_API_KEY={TEST_KEY}", flush=True)  # noqa: T201

    try:
        asyncio.run(serve(host=arguments.host, port=arguments.port, ready=ready))
    except (OSError, OverflowError) as error:
        raise ConfigurationError(f"cannot listen on {arguments.host}:{arguments.port}: {error}") from error
    return OK


def _demo(_: argparse.Namespace) -> int:
    from worker.sandbox.demo import demo  # noqa: PLC0415

    code: int = asyncio.run(demo(os.environ))
    return code


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _complain(error: Exception) -> None:
    for line in str(error).splitlines():
        print(f"payment-worker: {line}", file=sys.stderr)  # noqa: T201
