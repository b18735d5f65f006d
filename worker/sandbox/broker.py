"""A RabbitMQ server of our own: loopback only, in a folder of its own, gone when this process is.

It is started by RabbitMQ's own script and not by Debian's wrapper, which would switch to the user `rabbitmq`
and to the system's settings. The variables are described in rabbitmq-env.conf(5), at
https://www.rabbitmq.com/docs/configure and at https://www.rabbitmq.com/docs/networking.
"""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import ClassVar

from worker.sandbox.private_server import (
    START_TIMEOUT_S,
    PrivateServer,
    ServerError,
    free_ports,
    last_lines,
    wait_until,
)

_DEBIAN_SCRIPTS = Path("/usr/lib/rabbitmq/bin")
_CTL_TIMEOUT_S = 60.0

# A nearly full disk or a container's memory limit must not raise the alarm that blocks publishers. The raft
# log, which is kept whole in memory too, is cut at 16 MB instead of 512 MB.
_CONF = """\
listeners.tcp.1 = 127.0.0.1:{port}
disk_free_limit.absolute = 50MB
vm_memory_high_watermark.absolute = 1GB
raft.wal_max_size_bytes = 16777216
log.console = false
log.file.level = warning
"""


class PrivateBroker(PrivateServer):
    """A throwaway RabbitMQ node without the management plugin, ready when it answers AMQP's first frame.

    A node killed within about a second of declaring a quorum queue forgets the queue's content: let the queue
    grow older than 5 s, or `restart()` once, before a kill.
    """

    name: ClassVar = "RabbitMQ"
    stop_signal: ClassVar = signal.SIGTERM

    def __init__(self, folder: Path | None = None) -> None:
        self._scripts = _find_scripts()
        self._epmd_program = _find("epmd", "it comes with Erlang, which RabbitMQ needs")
        super().__init__(folder)
        self.port, self._epmd_port, self._dist_port = free_ports(3)
        self.amqp_url = f"amqp://guest:guest@127.0.0.1:{self.port}/"
        self._epmd: subprocess.Popen[bytes] | None = None

    async def ctl(self, *arguments: str) -> str:
        """Return what `rabbitmqctl --quiet` with `arguments` says of this node; ServerError when it fails."""
        return await asyncio.to_thread(self._ctl, arguments)

    def _launch(self) -> subprocess.Popen[bytes]:
        if _is_taken(self.port):
            raise ServerError(f"port {self.port} of the private RabbitMQ is now taken by another program")
        (self.folder / "rabbitmq.conf").write_text(_CONF.format(port=self.port))
        (self.folder / "enabled_plugins").write_text("[].\n")
        self._start_epmd()
        return self._spawn(self._scripts / "rabbitmq-server")

    def _start_epmd(self) -> None:
        """Run the port mapper as our child: left to the node it would become a daemon that outlives it."""
        if self._epmd is not None and self._epmd.poll() is None:
            return
        self._epmd = self._spawn(self._epmd_program, "-address", "127.0.0.1", "-port", str(self._epmd_port))
        wait_until(
            lambda: _is_taken(self._epmd_port),
            timeout_s=START_TIMEOUT_S,
            otherwise=lambda: f"epmd did not start\n{self._log()}",
        )

    def _spawn(self, *command: str | Path) -> subprocess.Popen[bytes]:
        return self._warden.spawn(command, ends_by="KILL", env=self._environment())

    def _is_ready(self) -> bool:
        """Whether Connection.Start, a method frame 10.10 on channel 0, answers us (AMQP 0-9-1, 2.2.4)."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2) as link:
                link.sendall(b"AMQP\x00\x00\x09\x01")
                with link.makefile("rb") as answer:
                    frame = answer.read(11)
        except OSError:
            return False
        return frame[:3] == b"\x01\x00\x00" and frame[7:] == b"\x00\x0a\x00\x0a"

    def _ctl(self, arguments: tuple[str, ...]) -> str:
        done = subprocess.run(
            [self._scripts / "rabbitmqctl", "--quiet", *arguments],
            env=self._environment(),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=_CTL_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            reason = (done.stderr or done.stdout).strip()
            raise ServerError(f"rabbitmqctl {' '.join(arguments)} failed: {reason}")
        return done.stdout

    def _environment(self) -> dict[str, str]:
        foreign = ("RABBITMQ_", "ERL_")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        loopback = "-kernel inet_dist_use_interface {127,0,0,1}"
        return inherited | {
            "HOME": str(self.folder),  # where the Erlang cookie is made
            "LC_ALL": "C.UTF-8",
            "RUNNING_UNDER_SYSTEMD": "true",  # the script then becomes the server (exec), so its pid is ours
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_CRASH_DUMP_SECONDS": "0",
            "RABBITMQ_NODENAME": "private@localhost",
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": loopback,
            "RABBITMQ_CTL_ERL_ARGS": loopback,
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder),
            "RABBITMQ_LOGS": str(self.folder / "rabbitmq.log"),
            "RABBITMQ_PID_FILE": str(self.folder / "rabbitmq.pid"),
        }

    def _log(self) -> str:
        return f"{super()._log()}\n{last_lines(self.folder / 'rabbitmq.log')}".strip()


def _find_scripts() -> Path:
    """Return the folder of rabbitmq-server and rabbitmqctl, past Debian's wrappers in /usr/sbin."""
    if (_DEBIAN_SCRIPTS / "rabbitmq-server").exists():
        return _DEBIAN_SCRIPTS
    advice = "install RabbitMQ, on Debian or Ubuntu with `sudo apt-get install rabbitmq-server`"
    return Path(_find("rabbitmq-server", advice)).parent


def _find(program: str, advice: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise ServerError(f"{program} was not found: {advice}")
    return path


def _is_taken(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
