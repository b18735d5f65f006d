import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "worker" / "sandbox" / "install_services.sh"


def run(*services: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", SCRIPT, *services], capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("services", [[], ["rabbitmq"], ["postgresql"], ["rabbitmq", "postgresql"]])
def test_what_is_installed_is_left_alone_in_silence(services: list[str]) -> None:
    done = run(*services)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_unknown_service_is_refused() -> None:
    done = run("rabbitmq", "mysql")
    assert done.returncode == 2
    assert done.stderr == "usage: install_services.sh [rabbitmq] [postgresql]\n"
