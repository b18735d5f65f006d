"""The container files held against the program, as far as that goes without a container engine."""

import json
import os
import re
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from worker.sandbox.private_server import free_ports
from worker.settings import SETTING_NAMES, read_settings

ROOT = Path(__file__).parents[2]
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
DOCKERFILE = [
    (instruction, rest.strip())
    for instruction, rest in re.findall(r"^([A-Z]+) (.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
]
OURS = {name: service for name, service in SERVICES.items() if service.get("build")}


def said(instruction: str) -> list[str]:
    return [rest for name, rest in DOCKERFILE if name == instruction]


def image_environment() -> dict[str, str]:
    return dict(word.split("=", 1) for line in said("ENV") for word in line.split())


def image_health_check() -> list[str]:
    """Return the HEALTHCHECK's words; the `python` of the image is the one that runs this test."""
    [check] = said("HEALTHCHECK")
    words: list[str] = json.loads(check[check.index("[") :])
    return words


def by_default(value: str) -> str:
    """Return what compose makes of a value with none of its variables set: `${NAME:-default}`, `${NAME-default}`."""
    return re.sub(r"\$\{\w+:?-([^}]*)\}", r"\1", value)


@contextmanager
def server_answering(status: int) -> Iterator[tuple[int, list[str]]]:
    """Serve `status` to every GET; yields the port and the list of paths asked for."""
    paths: list[str] = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *words: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_port, paths
        server.shutdown()
        thread.join()


def run_check(words: list[str], *, port: int, instead_of: str | None = None) -> int:
    """Run a health check's own words here, on another port; return its exit code."""
    assert words[:2] == ["python", "-c"]
    program = words[2].replace(instead_of, str(port)) if instead_of else words[2]
    assert instead_of is None or program != words[2]
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"HTTP_PORT": str(port)},
        capture_output=True,
        check=False,
        timeout=20,
    )
    return done.returncode


def test_every_name_the_worker_is_given_is_a_setting_of_it() -> None:
    given = set(SERVICES["worker"]["environment"])
    assert given <= SETTING_NAMES
    assert {"HTTP_HOST", "HTTP_PORT"} <= set(image_environment()) & SETTING_NAMES


def test_the_worker_accepts_its_settings_and_needs_no_account() -> None:
    given = {name: by_default(value) for name, value in SERVICES["worker"]["environment"].items()}
    settings = read_settings(given)
    assert settings.stripe_api_base == "http://sandbox:12111"
    assert settings.migrates_at_start
    assert not settings.livemode
    assert read_settings(given | {"STRIPE_API_BASE": ""}).stripe_api_base is None


def test_addresses_name_services_and_their_accounts() -> None:
    given = SERVICES["worker"]["environment"]
    broker, database = SERVICES["rabbitmq"]["environment"], SERVICES["postgres"]["environment"]
    user, password = broker["RABBITMQ_DEFAULT_USER"], broker["RABBITMQ_DEFAULT_PASS"]
    assert given["AMQP_URL"] == f"amqp://{user}:{password}@rabbitmq:5672/"
    user, password = database["POSTGRES_USER"], database["POSTGRES_PASSWORD"]
    expected = f"postgresql+psycopg://{user}:{password}@postgres:5432/{database['POSTGRES_DB']}"
    assert given["DATABASE_URL"] == expected


@pytest.mark.parametrize("service", sorted(OURS))
def test_its_command_is_one_of_the_program(service: str) -> None:
    assert json.loads(said("ENTRYPOINT")[0]) == ["payment-worker"]
    command, *options = OURS[service]["command"]
    done = subprocess.run(
        [sys.executable, "-m", "worker", command, "--help"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert [option for option in options if option.startswith("--") and option not in done.stdout] == []


def test_the_image_runs_the_worker_unless_told_otherwise() -> None:
    assert json.loads(said("CMD")[0]) == SERVICES["worker"]["command"] == ["run"]


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_the_images_health_check_goes_by_livez(status: int, code: int) -> None:
    with server_answering(status) as (port, paths):
        assert run_check(image_health_check(), port=port) == code
    assert paths == ["/livez"]


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_the_sandboxs_health_check_goes_by_its_answer(status: int, code: int) -> None:
    with server_answering(status) as (port, _paths):
        check = SERVICES["sandbox"]["healthcheck"]["test"][1:]
        assert run_check(check, port=port, instead_of="12111") == code


def test_nobody_there_is_unhealthy() -> None:
    [port] = free_ports(1)
    assert run_check(image_health_check(), port=port) == 1
    assert run_check(SERVICES["sandbox"]["healthcheck"]["test"][1:], port=port, instead_of="12111") == 1


def test_the_real_sandbox_is_healthy_by_its_check() -> None:
    [port] = free_ports(1)
    command = [str(port) if word == "12111" else word for word in SERVICES["sandbox"]["command"]]
    command[command.index("0.0.0.0")] = "127.0.0.1"
    with subprocess.Popen([sys.executable, "-m", "worker", *command], cwd=ROOT) as sandbox:
        try:
            deadline = time.monotonic() + 30
            check = SERVICES["sandbox"]["healthcheck"]["test"][1:]
            while run_check(check, port=port, instead_of="12111") != 0:
                assert sandbox.poll() is None, "the sandbox ended"
                assert time.monotonic() < deadline
        finally:
            sandbox.terminate()


def test_whoever_is_waited_for_can_be_seen_to_be_healthy() -> None:
    for service in SERVICES.values():
        for other, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}
            assert SERVICES[other]["healthcheck"]["test"][0] == "CMD"
    assert set(SERVICES["worker"]["depends_on"]) == {"rabbitmq", "postgres", "sandbox"}


def test_ports_are_published_to_this_machine_alone() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published
    assert [port for port in published if not port.startswith("127.0.0.1:")] == []


def test_services_come_back_and_the_worker_has_time_to_finish() -> None:
    assert {service["restart"] for service in SERVICES.values()} == {"unless-stopped"}
    settings = read_settings({"AMQP_URL": "amqp://broker", "STRIPE_API_KEY": "sk_test_x"})
    grace_s = int(SERVICES["worker"]["stop_grace_period"].removesuffix("s"))
    assert grace_s > settings.drain_timeout
    assert grace_s > settings.stripe_timeout


def test_what_the_image_copies_is_there_and_not_ignored() -> None:
    sources = [word for line in said("COPY") if "--from" not in line for word in line.split()[:-1]]
    assert {"requirements.txt", "worker", "schemas"} <= set(sources)
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source in allowed, source


def test_the_image_holds_pinned_packages_and_no_root() -> None:
    assert any("--require-hashes" in command for command in said("RUN"))
    assert said("USER") == ["10001:10001"]
    last_stage = [name for name, _ in DOCKERFILE][::-1]
    assert last_stage.index("USER") < last_stage.index("FROM")


def test_every_module_is_installed_with_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    modules = [path for top in ("worker", "schemas") for path in (ROOT / top).rglob("*.py")]
    packages = {str(path.parent.relative_to(ROOT)).replace("/", ".") for path in modules}
    assert packages == set(project["tool"]["setuptools"]["packages"])


def test_the_images_python_suits_the_project() -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    lowest = tuple(map(int, wanted.removeprefix(">=").split(".")))
    bases = {re.fullmatch(r"python:(\d+)\.(\d+)-slim(?: AS build)?", image) for image in said("FROM")}
    versions = {tuple(map(int, base.groups())) if base else None for base in bases}
    assert len(versions) == 1
    [version] = versions
    assert version is not None
    assert version >= lowest
