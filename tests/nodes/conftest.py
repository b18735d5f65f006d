"""What the tests of the two private servers look at from outside: their processes and their listeners."""

from collections.abc import Callable
from pathlib import Path

import pytest


def _processes_in(folder: Path) -> dict[int, str]:
    """Return the name of every living process whose working folder is `folder` or below, even if it is gone."""
    found = {}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            if str((process / "cwd").readlink()).startswith(str(folder)):
                found[int(process.name)] = (process / "comm").read_text().strip()
        except OSError:  # ended meanwhile, or a zombie
            continue
    return found


def _listening_addresses(folder: Path) -> set[str]:
    """Return the local addresses, as /proc/net/tcp writes them, that the processes of `folder` listen on."""
    sockets = set()
    for pid in _processes_in(folder):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = str(descriptor.readlink())
            except OSError:
                continue
            if target.startswith("socket:["):
                sockets.add(target[8:-1])
    addresses = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in sockets:
                addresses.add(fields[1].partition(":")[0])
    return addresses


@pytest.fixture(scope="session")
def processes_in() -> Callable[[Path], dict[int, str]]:
    return _processes_in


@pytest.fixture(scope="session")
def listening_addresses() -> Callable[[Path], set[str]]:
    return _listening_addresses


@pytest.fixture(scope="session")
def loopback() -> set[str]:
    """127.0.0.1 and ::1 as /proc/net writes them: words of four bytes, each in the machine's order."""
    return {"0100007F", "00000000000000000000000001000000"}
