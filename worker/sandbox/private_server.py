"""What the private broker and the private database share: free ports, a folder of their own, and an end.

A server started here must not outlive this Python process, however that process ends. PR_SET_PDEATHSIG is
tied to the *thread* that forked (prctl(2)), and a pool's thread ends earlier than its process; so a small
shell waits on a pipe instead, which the kernel closes whenever we are gone, SIGKILL included.
"""

import asyncio
import pwd
import random
import shlex
import signal
import socket
import subprocess
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

START_TIMEOUT_S = 60.0  # 3 to 6 s for RabbitMQ on two idle cores; a loaded machine takes several times that
STOP_TIMEOUT_S = 30.0

# Below Linux's ephemeral range (32768-60999): a client that keeps dialling a stopped server would otherwise
# be given that very port as its own, connect to itself, and keep the server from binding it again.
_PORTS = range(15_000, 32_000)

# Each line on standard input lists the "SIGNAL PID" pairs now alive; at its end they are killed and the
# folder goes. `rm` is tried until the last of them has stopped writing.
_WARDEN = """
trap '' INT TERM HUP
alive=
while read -r line; do alive=$line; done
set -- $alive
while [ $# -ge 2 ]; do kill -s "$1" "$2" 2>/dev/null; shift 2; done
[ -n "$FOLDER" ] || exit 0
tries=0
until rm -rf "$FOLDER" 2>/dev/null || [ $tries -ge 100 ]; do sleep 0.1; tries=$((tries + 1)); done
"""


class ServerError(RuntimeError):
    """A private server is missing or did not do as told; the message is a sentence, then its log if any."""


class PrivateServer(ABC):
    """A throwaway server on 127.0.0.1: `async with` and `with` both start it, then stop and remove it.

    A `folder` that was given stays, its data with it. Port and address stay the same across `kill()`,
    `stop()` and `start()`. The methods that wait are coroutines but belong to no event loop, so one server
    may serve a whole test session. When this process dies, even by SIGKILL, the server dies with it.
    """

    name: ClassVar[str]
    stop_signal: ClassVar[signal.Signals]

    def __init__(self, folder: Path | None) -> None:
        self._warden = Warden(folder, prefix=f"private-{self.name.lower()}-")
        self.folder = self._warden.folder
        self._process: subprocess.Popen[bytes] | None = None
        self._turn = threading.Lock()  # one start or stop at a time, from whichever thread

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await asyncio.shield(asyncio.to_thread(self._close))
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.shield(asyncio.to_thread(self._close))

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    @property
    def pid(self) -> int:
        """The server's process id, for a signal of your own; ServerError when it does not run."""
        if self._process is None or self._process.poll() is not None:
            raise ServerError(f"the private {self.name} is not running")
        return self._process.pid

    async def start(self) -> None:
        """Start it and return when it serves clients, at once when it runs; ServerError when it cannot."""
        await asyncio.to_thread(self._start)

    async def stop(self) -> None:
        """Shut it down in order and return when it has ended; what is durable stays."""
        await asyncio.to_thread(self._stop)

    async def restart(self) -> None:
        """Stop in order, then start."""
        await self.stop()
        await self.start()

    def kill(self) -> None:
        """SIGKILL: it is gone when this returns, as in a crash; what it had on disk stays."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._warden.release(self._process)

    @abstractmethod
    def _launch(self) -> subprocess.Popen[bytes]:
        """Prepare the folder where needed and spawn the server's process."""

    @abstractmethod
    def _is_ready(self) -> bool:
        """Whether a client would be served now."""

    def _log(self) -> str:
        return last_lines(self._warden.output)

    def _start(self) -> None:
        with self._turn:
            if self._process is not None and self._process.poll() is None:
                return
            self._process = process = self._launch()
            wait_until(
                lambda: process.poll() is not None or self._is_ready(),
                timeout_s=START_TIMEOUT_S,
                otherwise=lambda: f"{self.name} was not ready in {START_TIMEOUT_S:.0f} s\n{self._log()}",
            )
            if process.poll() is not None:
                self._warden.release(process)
                raise ServerError(f"{self.name} ended with {process.returncode} while starting\n{self._log()}")

    def _stop(self) -> None:
        with self._turn:
            if self._process is not None:
                self._warden.end(self._process, self.stop_signal)

    def _close(self) -> None:
        """End everything; a start that is still under way in another thread fails and is waited for."""
        if self._turn.locked():
            self.kill()
        self._stop()
        self._warden.close()


class Warden:
    """Owns a folder and the processes in it: `close()`, or this Python process' end, kills and removes them.

    `folder` None makes a temporary folder, removed at the end; a folder that was given stays.
    """

    def __init__(self, folder: Path | None, *, prefix: str) -> None:
        self.folder = folder.resolve() if folder else Path(tempfile.mkdtemp(prefix=prefix))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.output = self.folder / "output.txt"
        self._alive: dict[subprocess.Popen[bytes], str] = {}
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", f"FOLDER={shlex.quote('' if folder else str(self.folder))}\n{_WARDEN}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        assert self._shell.stdin is not None
        self._pipe = self._shell.stdin

    def spawn(
        self,
        command: Sequence[str | Path],
        *,
        ends_by: str,
        env: Mapping[str, str],
        account: pwd.struct_passwd | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start `command` in the folder, its words going to `output`; `ends_by` names the signal to end it by.

        It has a session of its own: Ctrl-C in a terminal is ours to handle. `account` is whom to become.
        """
        if self._pipe.closed:
            raise ServerError("a private server that was closed cannot be started again")
        with self.output.open("ab") as output:
            process = subprocess.Popen(
                command,
                env=env,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=account.pw_uid if account else None,
                group=account.pw_gid if account else None,
                extra_groups=[] if account else None,
            )
        self._alive[process] = ends_by
        self._tell()
        return process

    def release(self, process: subprocess.Popen[bytes]) -> None:
        """Forget `process`, which has ended and was waited for: its pid may be another's by now."""
        self._alive.pop(process, None)
        self._tell()

    def end(self, process: subprocess.Popen[bytes], by: signal.Signals) -> None:
        """Send `by` and wait, use SIGKILL when that was not enough; nothing when it has ended already."""
        process.send_signal(by)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self.release(process)

    def close(self) -> None:
        """Kill what is still alive and remove the temporary folder. A second call does nothing."""
        self._shell.communicate()
        for process in list(self._alive):
            process.wait()
        self._alive.clear()

    def _tell(self) -> None:
        if not self._pipe.closed:
            alive = [f"{name} {process.pid}" for process, name in list(self._alive.items())]
            self._pipe.write(" ".join(alive).encode() + b"\n")
            self._pipe.flush()


def free_ports(count: int) -> list[int]:
    """Return `count` TCP ports that nobody listens on at 127.0.0.1 and that no client is given by chance."""
    ports: list[int] = []
    with ExitStack() as held:
        for port in random.sample(_PORTS, len(_PORTS)):
            if len(ports) == count:
                return ports
            probe = held.enter_context(socket.socket())
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            ports.append(port)
    raise ServerError("no free TCP port was found on 127.0.0.1")


def wait_until(is_so: Callable[[], bool], *, timeout_s: float, otherwise: Callable[[], str]) -> None:
    """Return once `is_so()`, asked every 20 ms; ServerError with `otherwise()` after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > deadline:
            raise ServerError(otherwise())
        time.sleep(0.02)


def last_lines(log: Path, count: int = 15) -> str:
    """Return the end of a log for an error's message, empty when there is no such file."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-count:]) if log.exists() else ""
