"""The import contracts hold the doors, and breaking one is caught."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINT = Path(sys.executable).with_name("lint-imports")

BREACHES = {
    "the core reaches for the loop": ("worker/payment.py", "import asyncio", "The core is pure"),
    "the spine reaches for Stripe": ("worker/process_order.py", "import stripe", "The Stripe door"),
    "the ledger reaches for the broker": ("worker/ledger/moves.py", "import aio_pika", "The bus door"),
    "health reaches for SQL": ("worker/health.py", "import sqlalchemy", "The ledger door"),
    "a thing imports a flow": ("worker/bus/outgoing.py", "import worker.process_order", "Imports go down"),
    "the contract imports the worker": ("schemas/money.py", "import worker.errors", "The contract stands alone"),
    "the stand-in borrows our money": (
        "worker/sandbox/stripe_money.py",
        "import schemas.money",
        "second implementation",
    ),
    "a room for odds and ends": ("worker/utils.py", "", "Imports go down"),
}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("worker", "schemas"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LINT, "--no-cache"], cwd=folder, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(folder)}
    )


def test_the_contracts_are_kept(copy: Path) -> None:
    done = lint(copy)

    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("file", "line", "contract"), BREACHES.values(), ids=BREACHES)
def test_a_breach_is_caught(file: str, line: str, contract: str, copy: Path) -> None:
    path = copy / file
    path.write_text(f"{path.read_text() if path.exists() else ''}\n{line}\n")

    done = lint(copy)

    assert done.returncode != 0
    broken = done.stdout.partition("Broken contracts")[2] or done.stdout
    assert contract in broken


def test_the_environment_is_read_by_the_command_line_alone() -> None:
    """It hands it to `read_settings`; nothing else knows that there is one."""
    sandbox = ROOT / "worker" / "sandbox"  # starts programs, and hands them the environment
    readers = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "worker").rglob("*.py")
        if sandbox not in path.parents and ("os.environ" in path.read_text() or "getenv" in path.read_text())
    }

    assert readers == {"worker/cli.py"}
