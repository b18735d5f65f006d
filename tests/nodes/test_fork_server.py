"""A fork of the fork server is what a new interpreter would be, to whoever started it and to itself."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import harness
from tests.fork_server import ForkedProcess, fork_python
from tests.harness import run_cli, start_interpreter, until

ROOT = Path(__file__).parents[2]
SANDBOX = ("-m", "worker", "sandbox", "--port", "0")


@pytest.fixture
def running(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command that goes on until it is stopped; what it says is in the file `said`."""
    with (tmp_path / "said").open("wb") as said:
        process = fork_python(SANDBOX, dict(os.environ), stdout=said.fileno(), stderr=said.fileno())
    yield process
    process.kill()
    process.wait(10)


@pytest.mark.parametrize(
    ("words", "code"),
    [(["--help"], 0), (["wrong"], 2), (["run"], 2), (["replay", "--help"], 2), (["dead-letters", "--help"], 0)],
)
def test_a_command_says_the_same_and_ends_the_same(
    words: list[str], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = dict(os.environ) | {"COLUMNS": "77"}
    forked = run_cli(environment, *words)
    monkeypatch.setattr(harness, "start_python", start_interpreter)
    real = run_cli(environment, *words)

    assert (forked.returncode, forked.stdout, forked.stderr) == (real.returncode, real.stdout, real.stderr)
    assert forked.returncode == code


def test_an_error_that_nobody_catches_ends_it_with_1_and_a_traceback(tmp_path: Path) -> None:
    with (tmp_path / "said").open("w+") as said:
        arguments = ["-m", "tests.crash.mortal_worker", "no JSON"]
        process = fork_python(arguments, dict(os.environ), stdout=said.fileno(), stderr=said.fileno())

        assert process.wait(30) == 1
        assert (tmp_path / "said").read_text().splitlines()[-1].startswith("json.decoder.JSONDecodeError")


def test_an_environment_is_whole() -> None:
    """Neither ours nor that of the fork before shows through."""
    assert "AMQP_URL" not in run_cli(dict(os.environ) | {"AMQP_URL": "amqp://localhost"}, "run").stderr
    assert "AMQP_URL is not set" in run_cli(dict(os.environ), "run").stderr


async def test_its_process_can_be_stopped_told_to_end_and_killed(
    running: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    said = tmp_path / "said"
    await until(lambda: "listens on" in said.read_text(), what="the command to be up")
    assert isinstance(running, ForkedProcess)
    assert running.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        running.wait(0.01)

    running.send_signal(signal.SIGSTOP)
    await until(lambda: state(running.pid) == "T", what="it to be stopped")
    running.send_signal(signal.SIGCONT)
    running.kill()
    assert running.wait(10) == -signal.SIGKILL
    assert running.poll() == running.returncode == -signal.SIGKILL


async def test_no_fork_outlives_who_started_it(tmp_path: Path) -> None:
    program = (
        "import os; from tests.fork_server import fork_python;"
        f"print(fork_python({SANDBOX}, dict(os.environ), stdout=2, stderr=2).pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, check=False, timeout=60)

    assert done.returncode == -signal.SIGKILL
    await until(lambda: state(int(done.stdout)) in ("", "Z"), what="the fork to end")


async def test_another_interpreter_than_ours_is_a_real_one() -> None:
    process = fork_python(["-m", "worker", "--help"], dict(os.environ) | {"PYTHONUTF8": "1"}, stdout=2, stderr=2)

    assert not isinstance(process, ForkedProcess)
    assert process.wait(30) == 0


def state(pid: int) -> str:
    """As /proc names it, T for stopped and Z for ended; empty for one that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""
