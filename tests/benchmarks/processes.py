"""What a process has used so far, its children with it; from Linux's /proc (proc(5))."""

import os
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
KIB_IN_MIB = 1024


def processor_seconds(pid: int) -> float:
    """Of all cores, in user and kernel mode; of children that run, and of those that ended and were waited for."""
    ticks = 0
    for each in family(pid):
        fields = _read(each, "stat").rpartition(")")[2].split()
        ticks += sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
    return ticks / TICKS_PER_S


def peak_mib(pid: int) -> float:
    """The most that each was resident with, added up."""
    return sum(_status_mib(each, "VmHWM") for each in family(pid))


def resident_mib(pid: int) -> float:
    """Now."""
    return sum(_status_mib(each, "VmRSS") for each in family(pid))


def family(pid: int) -> list[int]:
    """The process and those it started that still run."""
    children = [
        child for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]
    return [pid, *(each for child in children for each in family(int(child)))]


def _status_mib(pid: int, name: str) -> float:
    return int(_read(pid, "status").split(f"{name}:")[1].split()[0]) / KIB_IN_MIB


def _read(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text()
