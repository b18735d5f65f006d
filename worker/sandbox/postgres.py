"""A PostgreSQL server of our own: loopback only, in a folder of its own, gone when this process is.

PostgreSQL refuses to run as root, so there it becomes the user `postgres`, or else `nobody`. The signals are
those of https://www.postgresql.org/docs/current/server-shutdown.html.
"""

import asyncio
import os
import pwd
import secrets
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from worker.sandbox.private_server import STOP_TIMEOUT_S, PrivateServer, ServerError, free_ports, wait_until

_DEBIAN_VERSIONS = Path("/usr/lib/postgresql")
_TOOL_TIMEOUT_S = 60.0
_SOCKET_PATH_LIMIT = 107  # bytes in sockaddr_un, unix(7)


class PrivatePostgres(PrivateServer):
    """A throwaway PostgreSQL server, on a socket in its folder as well, with a password of its own.

    `stop()` is the "fast" shutdown: open transactions roll back, clients are cut off, no commit is lost.
    `durable=False` trades what a crash may lose for speed: never for a test that kills.
    """

    name: ClassVar = "PostgreSQL"
    stop_signal: ClassVar = signal.SIGINT

    def __init__(self, folder: Path | None = None, *, durable: bool = True) -> None:
        self._programs = _find_programs()
        self._account = _account_instead_of_root()
        self._options = [] if durable else ["fsync=off", "synchronous_commit=off", "full_page_writes=off"]
        super().__init__(folder)
        (self.port,) = free_ports(1)
        self._password_file = self.folder / "password"

    @property
    def url(self) -> str:
        """The address of the database `postgres`, for SQLAlchemy with psycopg; it holds the password."""
        return self._url("postgres")

    async def create_database(self, name: str) -> str:
        """Create an empty database and return its address; ServerError when the server refuses."""
        return await asyncio.to_thread(self._create_database, name)

    def kill(self) -> None:
        """SIGKILL to the server and its backends: all are gone when this returns, as in a crash."""
        running = self._process is not None and self._process.poll() is None
        backends = _children(self.pid) if running else []
        super().kill()
        for backend in backends:
            with suppress(ProcessLookupError):
                os.kill(backend, signal.SIGKILL)
        wait_until(
            lambda: not any(map(_is_alive, backends)),
            timeout_s=STOP_TIMEOUT_S,
            otherwise=lambda: "PostgreSQL's backends outlived SIGKILL",
        )

    def _launch(self) -> subprocess.Popen[bytes]:
        if not (self.folder / "data" / "PG_VERSION").exists():
            self._make_cluster()
        options = [
            f"port={self.port}",
            "listen_addresses=127.0.0.1",
            f"unix_socket_directories={self._socket_folder()}",
            *self._options,
        ]
        settings = [word for option in options for word in ("-c", option)]
        return self._spawn("postgres", "-D", "data", *settings)

    def _make_cluster(self) -> None:
        self._password_file.touch(mode=0o600)
        self._password_file.write_text(secrets.token_urlsafe(18))
        self._give_to_account()
        arguments = ["--username=postgres", "--pwfile=password", "--auth=scram-sha-256"]
        # Only a crash of the whole machine could hurt a cluster that is not yet flushed to disk.
        arguments += ["--encoding=UTF8", "--locale=C", "--no-sync"]
        initdb = self._spawn("initdb", "-D", "data", *arguments)
        initdb.wait()
        self._warden.release(initdb)
        if initdb.returncode != 0:
            raise ServerError(f"initdb ended with {initdb.returncode}\n{self._log()}")

    def _give_to_account(self) -> None:
        if self._account is None:
            return
        for parent in self.folder.parents:
            if not parent.stat().st_mode & 0o001:
                user = self._account.pw_name
                raise ServerError(f"{parent} keeps the user {user} out: give PostgreSQL an open folder, or none")
        for path in (self.folder, self._password_file):
            os.chown(path, self._account.pw_uid, self._account.pw_gid)

    def _spawn(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        command: list[str | Path] = [self._programs / program, *arguments]
        # SIGQUIT, the immediate shutdown, takes the backends along, which SIGKILL would leave behind.
        return self._warden.spawn(command, ends_by="QUIT", env=self._environment(), account=self._account)

    def _is_ready(self) -> bool:
        return self._run("pg_isready", "--quiet").returncode == 0

    def _create_database(self, name: str) -> str:
        done = self._run("createdb", "--", name)
        if done.returncode != 0:
            raise ServerError(f"createdb {name} failed: {done.stderr.strip()}")
        return self._url(name)

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self._programs / program), *arguments],
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=_TOOL_TIMEOUT_S,
            check=False,
        )

    def _environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        return inherited | {
            "LC_ALL": "C.UTF-8",
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.port),
            "PGUSER": "postgres",
            "PGPASSWORD": self._password_file.read_text(),
        }

    def _url(self, database: str) -> str:
        password = self._password_file.read_text()
        return f"postgresql+psycopg://postgres:{password}@127.0.0.1:{self.port}/{database}"

    def _socket_folder(self) -> str:
        """The folder, or nothing ("no socket") where the socket's path would be too long for the kernel."""
        path = os.fsencode(f"{self.folder}/.s.PGSQL.{self.port}.lock")
        return str(self.folder) if len(path) <= _SOCKET_PATH_LIMIT else ""


def _find_programs() -> Path:
    """Return the folder of `postgres` and `initdb`: Debian's newest, pg_config's, or the one on the PATH."""
    debian = [folder for folder in _DEBIAN_VERSIONS.glob("*/bin") if folder.parent.name.isdigit()]
    folders = sorted(debian, key=lambda folder: int(folder.parent.name), reverse=True)
    if pg_config := shutil.which("pg_config"):
        told = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=False).stdout
        folders.append(Path(told.strip()))
    if initdb := shutil.which("initdb"):
        folders.append(Path(initdb).resolve().parent)
    for folder in folders:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    advice = "install PostgreSQL, on Debian or Ubuntu with `sudo apt-get install postgresql`"
    raise ServerError(f"initdb was not found: {advice}")


def _account_instead_of_root() -> pwd.struct_passwd | None:
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name)
    raise ServerError("PostgreSQL refuses to run as root, and there is no user postgres or nobody to become")


def _children(pid: int) -> list[int]:
    """Linux's own list (proc(5)); elsewhere none: the backends see by themselves that they are orphans."""
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in listed.read_text().split()] if listed.exists() else []


def _is_alive(pid: int) -> bool:
    """Whether it runs still; a zombie, which its new parent has yet to reap, holds nothing any more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
