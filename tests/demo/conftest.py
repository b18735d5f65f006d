"""Runs of the real command in a clean environment, and what they leave behind."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from worker.sandbox.broker import PrivateBroker


@pytest.fixture
def clean(tmp_path: Path) -> dict[str, str]:
    """An environment without any setting, whose temporary folder is the test's own."""
    home = os.environ.get("HOME", "/")
    return {"PATH": os.environ["PATH"], "HOME": home, "LANG": "C.UTF-8", "TMPDIR": str(tmp_path), "TERM": "xterm"}


@pytest.fixture
def left_behind(tmp_path: Path) -> Callable[[], list[str]]:
    """Processes that were started, however indirectly, with the test's temporary folder, and files in it."""

    def look() -> list[str]:
        mark, found = f"TMPDIR={tmp_path}\0".encode(), [str(path) for path in tmp_path.iterdir()]
        for process in Path("/proc").iterdir():
            if process.name.isdigit():
                try:
                    if mark in (process / "environ").read_bytes():
                        found.append(f"{process.name} {(process / 'comm').read_text().strip()}")
                except OSError:  # ended meanwhile
                    continue
        return found

    return look


@pytest.fixture(scope="session")
def broker() -> Iterator[PrivateBroker]:
    """A broker that belongs to somebody else, as far as the demo is concerned."""
    with PrivateBroker() as running:
        yield running
