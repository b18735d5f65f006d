"""A downstream service uses `schemas` without the worker and what the worker needs."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_contract_imports_nothing_of_the_worker_and_no_vendor() -> None:
    program = (
        "import sys, schemas, schemas.json_files\nprint(*sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    imported = set(done.stdout.split())
    assert "schemas" in imported
    assert "pydantic" in imported
    assert imported & {"worker", "stripe", "aio_pika", "aiormq", "pamqp", "sqlalchemy", "aiohttp", "structlog"} == set()


def test_every_public_name_is_there() -> None:
    import schemas  # noqa: PLC0415

    assert [name for name in schemas.__all__ if not hasattr(schemas, name)] == []
    assert len(set(schemas.__all__)) == len(schemas.__all__)
