"""Programs that start in the time of a fork: `python -m worker …` without paying for its imports each time.

A server has imported what the worker imports, and started nothing: no thread, no loop, no connection. Each program is
a fork of it that becomes what `python -m` makes of a new interpreter: a process with a pid, an environment, a working
folder and standard streams of its own, the module run as `__main__`, and the interpreter's own end. Two things are not
the same: /proc shows the server's command line and environment. What tests the start itself uses real processes.
"""

import asyncio
import atexit
import functools
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

# Of the libraries, what they load at the first connection or migration.
LOADED_LATE: Final = (
    "logging.config",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite.aiosqlite",
    "sqlalchemy.dialects.sqlite.pysqlite",
)
# These run when they are imported.
PROGRAMS: Final = ("worker.__main__", "worker.ledger.migrations.")
# Read by an interpreter at its start, which a fork is past.
READ_AT_START: Final = ("PYTHON", "LC_", "LANG")
ANY_SETTINGS: Final = {"AMQP_URL": "amqp://localhost", "STRIPE_API_KEY": "sk_test_any", "DATABASE_URL": "sqlite://"}
# An environment is a few KiB.
REQUEST_BYTES: Final = 1024 * 1024

# Tests run commands in threads.
_starting: Final = threading.Lock()


class ForkedProcess(subprocess.Popen[bytes]):
    """To its holder a Popen without pipes. Its parent is the server, which writes its pid and its exit code to us."""

    def __init__(self, args: Sequence[str], told: int) -> None:  # Popen's own would start a process
        self.args = args
        self.stdin = self.stdout = self.stderr = None
        self.returncode: Any = None
        self._told = told
        self._reading = threading.Lock()
        self.pid = self._read_number()

    def poll(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode  # type: ignore[no-any-return]

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, negative for a signal. Seconds; then TimeoutExpired."""
        if self.returncode is None and not select.select([self._told], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        with self._reading:
            if self.returncode is None:
                self.returncode = self._read_number()
        return self.returncode  # type: ignore[no-any-return]

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)

    def __del__(self, *_: object) -> None:
        os.close(self._told)

    def _read_number(self) -> int:
        said = os.read(self._told, 4)
        assert said, f"the fork server has ended; of {self.args!r} is known no more"
        return int.from_bytes(said, signed=True)


def fork_python(
    arguments: Sequence[str], environment: dict[str, str], *, stdout: int, stderr: int
) -> subprocess.Popen[bytes]:
    """`python -m module words…`: a real one where its environment sets up the interpreter otherwise than ours.

    The streams are file descriptors; standard input is ours.
    """
    minus_m, module, *words = arguments
    assert minus_m == "-m", "a fork runs modules only"
    if _read_at_start(environment) != _read_at_start(os.environ):
        return subprocess.Popen([sys.executable, *arguments], env=environment, stdout=stdout, stderr=stderr)
    request = {"module": module, "words": words, "environment": environment, "folder": str(Path.cwd())}
    ours, theirs = os.pipe()
    try:
        with _starting:
            server = _server()
        socket.send_fds(server, [json.dumps(request).encode()], [0, stdout, stderr, theirs])
    finally:
        os.close(theirs)
    return ForkedProcess(arguments, ours)


def _read_at_start(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(READ_AT_START)}


@functools.cache
def _server() -> socket.socket:
    """The way to this process's server, started at the first call; it ends when the way is closed, by whatever end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "tests.fork_server", str(theirs.fileno())]
    server = subprocess.Popen(command, cwd=Path(__file__).parent.parent, pass_fds=[theirs.fileno()])
    theirs.close()

    def end() -> None:
        ours.close()
        server.wait()

    atexit.register(end)
    return ours


def import_all() -> None:
    """All that any command of the worker imports, and what the Stripe SDK puts off until there is a client."""
    import worker  # noqa: PLC0415 - in the server alone
    from worker.app import build_gateway  # noqa: PLC0415
    from worker.settings import read_settings  # noqa: PLC0415

    modules = [module.name for module in pkgutil.walk_packages(worker.__path__, "worker.")]
    for name in (*(name for name in modules if not name.startswith(PROGRAMS)), *LOADED_LATE):
        importlib.import_module(name)

    async def open_gateway() -> None:
        async with build_gateway(read_settings(ANY_SETTINGS)):
            pass

    asyncio.run(open_gateway())
    assert threading.active_count() == 1, "a fork has none of its parent's threads"


def serve(requests: socket.socket) -> dict[str, Any] | None:
    """Fork for each request; returns the request in its fork, and None in the server when there will be no more."""
    children: dict[int, tuple[int, int]] = {}  # of a pidfd: the pid, and where its end is told
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not requests:
                    selector.unregister(key.fd)
                    _bury(key.fd, *children.pop(key.fd))
                    continue
                data, descriptors, _, _ = socket.recv_fds(requests, REQUEST_BYTES, 4)
                if not data:
                    for pid, _ in children.values():
                        os.kill(pid, signal.SIGKILL)
                    return None
                *streams, told = descriptors
                pid = os.fork()
                if pid == 0:
                    for number, stream in enumerate(streams):
                        os.dup2(stream, number)
                    _close(*descriptors, *children, *(other for _, other in children.values()))
                    request: dict[str, Any] = json.loads(data)
                    return request
                _close(*streams)
                _tell(told, pid)
                pidfd = os.pidfd_open(pid)
                children[pidfd] = pid, told
                selector.register(pidfd, selectors.EVENT_READ)


def _bury(pidfd: int, pid: int, told: int) -> None:
    _tell(told, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    _close(pidfd, told)


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _tell(told: int, number: int) -> None:
    with suppress(BrokenPipeError):  # nobody holds it any more
        os.write(told, number.to_bytes(4, signed=True))


def become(request: dict[str, Any]) -> None:
    """What `python -m` makes of a new interpreter."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    os.chdir(request["folder"])
    sys.stdout.reconfigure(line_buffering=os.isatty(1))  # type: ignore[union-attr]
    sys.argv = [request["module"], *request["words"]]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all of us; the end of the tests is ours
    import_all()
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=int(sys.argv[1])) as requests:
        request = serve(requests)
    if request is not None:
        become(request)


if __name__ == "__main__":
    main()
