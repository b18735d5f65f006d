"""A short run under fire: the seed of the day's trouble is fixed, and `python -m tests.chaos.chaos` throws others."""

import pytest

from tests.chaos.chaos import run_chaos
from tests.chaos.report import Options


@pytest.mark.parametrize("ledger", ["sqlite", "postgresql"])
async def test_whatever_dies_each_order_comes_to_one_outcome(ledger: str) -> None:
    report = await run_chaos(Options(seed=7, orders=60, kills=4, freezes=1, broker_kills=1, ledger=ledger))

    assert not report.violations, f"{report.violations}\nlogs and evidence: {report.folder}"
    assert report.kills == 4, "somebody was there to be killed"
    assert report.faults.total() > 0
