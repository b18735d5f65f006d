"""A server of short lives, on the test's own ledger."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.crash import mortals as room
from tests.crash.mortals import Mortals


@pytest.fixture
async def mortals(environment: dict[str, str], ledger_url: str, tmp_path: Path) -> AsyncIterator[Mortals]:
    async with room.mortals(environment | {"DATABASE_URL": ledger_url}, tmp_path / "mortals.log") as server:
        yield server
