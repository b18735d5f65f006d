"""What figures were taken on: the machine, and the versions of all that took part."""

import json
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tests.benchmarks.contenders import NODE_WORKER
from tests.benchmarks.stage import Stage
from worker.ledger.engine import open_engine

PACKAGES = (
    "aio-pika",
    "aiohttp",
    "aiormq",
    "faststream",
    "httpx",
    "psycopg",
    "pydantic",
    "sqlalchemy",
    "stripe",
    "structlog",
    "uvloop",
)
GIB = 1024**3


def machine() -> dict[str, Any]:
    """load: processes that wanted a core in the last minute, at this moment."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, 1),
        "system": platform.platform(),
        "load": os.getloadavg()[0],
    }


async def versions(stage: Stage) -> dict[str, str | None]:
    """None for what is not installed."""
    engine = open_engine(stage.postgres.url)
    with engine.connect() as conn:
        postgresql = conn.exec_driver_sql("SHOW server_version").scalar_one()
    engine.dispose()
    found: dict[str, str | None] = {
        "commit": _said("git", "describe", "--always", "--dirty"),
        "Python": platform.python_version(),
        "RabbitMQ": (await stage.broker.ctl("version")).strip(),
        "PostgreSQL": postgresql,
        "Node": _said("node", "--version"),
    }
    locked = json.loads((NODE_WORKER / "package-lock.json").read_text())["packages"]
    found |= {f"Node's {name}": locked[f"node_modules/{name}"]["version"] for name in ("amqplib", "pg", "stripe")}
    return found | {name: _installed(name) for name in PACKAGES}


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _said(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    """Its name, where the kernel tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
