"""Workers that are always started again, and what strikes them and all that they stand on."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Final

from tests.chaos.proxy import Proxy
from tests.harness import WorkerProcess
from worker.sandbox.broker import PrivateBroker
from worker.sandbox.postgres import PrivatePostgres

CLAIM_TTL_S: Final = 1
SUBSCRIBED_DEADLINE_S: Final = 15

Trouble = Callable[[], Awaitable[None]]


class Slot:
    """A place that always has a worker, as under a supervisor: each life of it writes a log of its own."""

    def __init__(self, name: str, environment: dict[str, str], folder: Path, dice: Random) -> None:
        self._name, self._environment, self._folder, self._dice = name, environment, folder, dice
        self._lives = 0
        self._was_killed = False
        self._worker: WorkerProcess | None = None
        self.deaths: list[int] = []

    async def run(self) -> None:
        """For ever: start it, see it end, start it again after a moment."""
        while True:
            self._lives += 1
            self._was_killed = False
            log = self._folder / f"{self._name}-{self._lives:03}.log"
            self._worker = WorkerProcess(self._environment, log).start()
            while self._worker.is_running():
                await asyncio.sleep(0.02)
            if not self._was_killed:
                self.deaths.append(self._worker.process.returncode)
            await asyncio.sleep(self._dice.uniform(0, 0.5))

    @property
    def is_subscribed(self) -> bool:
        worker = self._worker
        return worker is not None and worker.is_running() and bool(worker.said("consumer.subscribed"))

    @property
    def is_running(self) -> bool:
        return self._worker is not None and self._worker.is_running()

    def signal(self, number: signal.Signals) -> None:
        """Only while it runs."""
        assert self._worker
        self._worker.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, where there is somebody."""
        if self._worker and self._worker.is_running():
            self._was_killed = True
            self._worker.kill()

    async def stop(self) -> int:
        """Ask it to stop; its exit code. Only after `run` was cancelled."""
        assert self._worker
        return await self._worker.stop()


class Troubles:
    """What strikes, each at most once at a time."""

    def __init__(
        self,
        *,
        slots: Sequence[Slot],
        broker: PrivateBroker,
        postgres: PrivatePostgres | None,
        proxies: Sequence[Proxy],
        dice: Random,
    ) -> None:
        self._slots, self._broker, self._postgres, self._proxies, self._dice = slots, broker, postgres, proxies, dice
        self.kills = 0

    def plan(self, *, kills: int, freezes: int, broker_kills: int, database_restarts: int, cuts: int) -> list[Trouble]:
        """All that is asked for, in an order of dice."""
        planned: list[Trouble] = [self.kill_worker] * kills
        planned += [self.freeze_worker] * freezes
        planned += [self.kill_broker] * broker_kills
        planned += [self.restart_database] * (database_restarts if self._postgres else 0)
        planned += [self.trouble_network] * cuts
        self._dice.shuffle(planned)
        return planned

    async def all_at_work(self) -> None:
        """Until every worker takes orders; one time in six nobody waits for those that are starting."""
        if self._dice.random() > 1 / 6:
            await self.all_subscribed()

    async def all_subscribed(self) -> None:
        """Until every worker takes orders, or has had its time to."""
        with suppress(TimeoutError):
            async with asyncio.timeout(SUBSCRIBED_DEADLINE_S):
                while not all(slot.is_subscribed for slot in self._slots):
                    await asyncio.sleep(0.05)

    async def kill_worker(self) -> None:
        if running := [slot for slot in self._slots if slot.is_running]:
            self._dice.choice(running).kill()
            self.kills += 1

    async def freeze_worker(self) -> None:
        """Out of the world for longer than its claims live, then back as if nothing had been."""
        if running := [slot for slot in self._slots if slot.is_running]:
            slot = self._dice.choice(running)
            slot.signal(signal.SIGSTOP)
            await asyncio.sleep(self._dice.uniform(CLAIM_TTL_S, 3 * CLAIM_TTL_S))
            slot.signal(signal.SIGCONT)

    async def kill_broker(self) -> None:
        self._broker.kill()
        await asyncio.sleep(self._dice.uniform(0, 1))
        await self._broker.start()

    async def restart_database(self) -> None:
        """A crash, or an orderly end that cuts off its clients."""
        assert self._postgres
        if self._dice.random() < 0.5:
            await asyncio.to_thread(self._postgres.kill)
        else:
            await self._postgres.stop()
        await asyncio.sleep(self._dice.uniform(0, 1))
        await self._postgres.start()

    async def trouble_network(self) -> None:
        proxy = self._dice.choice(self._proxies)
        lasting_s = self._dice.uniform(0.2, 2)
        match self._dice.choice(["cut", "pause", "refuse", "delay"]):
            case "cut":
                proxy.cut()
            case "pause":
                proxy.pause()
                await asyncio.sleep(lasting_s)
                proxy.resume()
            case "refuse":
                proxy.refuse()
                proxy.cut()
                await asyncio.sleep(lasting_s)
                proxy.accept()
            case "delay":
                proxy.delay_s = 0.05
                await asyncio.sleep(lasting_s)
                proxy.delay_s = 0.0
