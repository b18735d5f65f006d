"""Short lives of workers, on the test's own ledger."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.mortals import Mortals


@pytest.fixture
def mortals(environment: dict[str, str], ledger_url: str, tmp_path: Path) -> Iterator[Mortals]:
    mortals = Mortals(environment | {"DATABASE_URL": ledger_url}, tmp_path / "mortals.log")
    yield mortals
    mortals.end()
