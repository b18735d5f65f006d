"""A short run under fire: the seed of the day's trouble is fixed, and `python -m tests.chaos.chaos` throws others."""

import pytest

from tests.chaos.chaos import run_chaos
from tests.chaos.history import CANCEL, CAPTURE, REFUND
from tests.chaos.report import Options


@pytest.mark.parametrize("ledger", ["sqlite", "postgresql"])
async def test_whatever_dies_each_order_comes_to_one_outcome_and_each_command_to_one_answer(ledger: str) -> None:
    report = await run_chaos(Options(seed=7, orders=40, kills=2, freezes=1, broker_kills=1, ledger=ledger))

    assert not report.violations, f"{report.violations}\nlogs and evidence: {report.folder}"
    assert report.kills == 2, "somebody was there to be killed"
    assert report.faults.total() > 0
    assert report.history
    assert {command.kind for command in report.history.commands} == {CANCEL, CAPTURE, REFUND}
    assert report.webhooks > len(report.history.intents), "Stripe has told of them"
