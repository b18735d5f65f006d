"""The worker in the demo: a process of its own, that can be killed and started again."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import aiohttp

from worker.sandbox.private_server import Warden, last_lines

START_TIMEOUT_S: Final = 30.0
COMMAND_TIMEOUT_S: Final = 30.0


class DemoFailed(Exception):
    """The demo cannot go on; the text says what was wrong."""


class WorkerProcess:
    """`payment-worker run` as a process of its own, and other commands beside it under the same settings."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._warden = Warden(None, prefix="payment-worker-demo-")
        root = str(Path(__file__).parents[2])
        search = os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH"))))
        ledger = f"sqlite+aiosqlite:///{self._warden.folder}/payments.db"
        self._environment = {**environment, "PYTHONPATH": search, "DATABASE_URL": ledger}
        self._process: subprocess.Popen[bytes] | None = None
        self._http: str | None = None

    @property
    def http(self) -> str:
        """Where it is spoken to: a port that was free when it started."""
        assert self._http is not None, "start it first"
        return self._http

    @property
    def pid(self) -> int:
        assert self._process is not None, "start it first"
        return self._process.pid

    async def start(self) -> None:
        """Return when it takes orders. Raises DemoFailed."""
        already = self._warden.output.stat().st_size if self._warden.output.exists() else 0
        command = [sys.executable, "-m", "worker", "run"]
        self._process = self._warden.spawn(command, ends_by="KILL", env=self._environment)
        try:
            async with asyncio.timeout(START_TIMEOUT_S), aiohttp.ClientSession() as session:
                while not await self._is_ready(session, already):
                    self.must_be_alive()
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise DemoFailed(f"the worker was not ready within {START_TIMEOUT_S:.0f} s") from None

    def must_be_alive(self) -> None:
        """Raises DemoFailed where it has ended without being asked to."""
        if self._process is None or self._process.poll() is None:
            return
        code = self._process.returncode
        raise DemoFailed(f"the worker ended by itself with {code}; it said last:\n{last_lines(self._warden.output, 5)}")

    async def kill(self) -> None:
        """SIGKILL: it is gone when this returns, and had no chance to finish anything."""
        assert self._process is not None, "start it first"
        await asyncio.to_thread(self._warden.end, self._process, signal.SIGKILL)
        self._process = None

    async def stop(self) -> int:
        """SIGTERM; returns its exit code, once it has finished what it had begun."""
        assert self._process is not None, "start it first"
        process, self._process = self._process, None
        await asyncio.to_thread(self._warden.end, process, signal.SIGTERM)
        return process.returncode

    async def run_json(self, *words: str) -> Any:
        """What another command of the worker prints as JSON. Raises DemoFailed."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "worker", *words, "--json", env=self._environment, stdout=-1, stderr=-1
        )
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                said, complained = await process.communicate()
        except TimeoutError:
            raise DemoFailed(f"`payment-worker {' '.join(words)}` took more than {COMMAND_TIMEOUT_S:.0f} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            raise DemoFailed(
                f"`payment-worker {' '.join(words)}` failed: {complained.decode(errors='replace').strip()}"
            )
        return json.loads(said)

    def keep_log(self) -> Path | None:
        """A copy of the worker's log that outlives the demo, where there is any log."""
        if not self._warden.output.exists():
            return None
        with tempfile.NamedTemporaryFile(prefix="payment-worker-demo-", suffix=".log", delete=False) as copy:
            copy.write(self._warden.output.read_bytes())
        return Path(copy.name)

    async def close(self) -> None:
        """Kill it where it still runs, and remove its ledger and log."""
        await asyncio.shield(asyncio.to_thread(self._warden.close))

    async def _is_ready(self, session: aiohttp.ClientSession, already: int) -> bool:
        address = _address_in(self._warden.output.read_bytes()[already:])
        if address is None:
            return False
        with contextlib.suppress(aiohttp.ClientError):
            async with session.get(f"{address}/readyz") as answer:
                self._http = address
                return answer.status == 200
        return False


def _address_in(log: bytes) -> str | None:
    """Where the worker serves HTTP, from its own first words."""
    for line in log.splitlines():
        with contextlib.suppress(ValueError):
            said = json.loads(line)
            if isinstance(said, dict) and said.get("event") == "worker.started":
                return str(said["http"])
    return None
