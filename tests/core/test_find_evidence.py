"""When it may be said that Stripe has nothing of a call."""

from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from worker.errors import CallTransient
from worker.find_evidence import CLOCK_SKEW, Absent, EvidenceFinder
from worker.payment import CREATE_INTENT, Operation
from worker.stripe_gateway import StripeGateway

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ASKED = NOW - timedelta(minutes=5)
SECOND = timedelta(seconds=1)


class EmptyStripe:
    """It has nothing, and tells the time."""

    def __init__(self, says: datetime | None) -> None:
        self._says = says

    async def search_intents(self, *_: Any) -> list[str]:
        return []

    async def list_intents(self, **_: Any) -> tuple[list[Any], None, datetime | None]:
        return [], None, self._says


async def look(says: datetime | None) -> object:
    finder = EvidenceFinder(gateway=cast("StripeGateway", EmptyStripe(says)), call_timeout_s=10, clock=lambda: NOW)
    return await finder.look_for(
        Operation("o-1", CREATE_INTENT, 1, "key", {}, None, ASKED, asks=(ASKED,), unknown_because="stored_error")
    )


@pytest.mark.parametrize("says", [NOW, NOW + CLOCK_SKEW, NOW - CLOCK_SKEW, None])
async def test_a_listing_without_it_shows_absence(says: datetime | None) -> None:
    assert isinstance(await look(says), Absent)


@pytest.mark.parametrize("says", [NOW + CLOCK_SKEW + SECOND, NOW - CLOCK_SKEW - SECOND])
async def test_but_not_where_our_clock_is_not_stripes(says: datetime) -> None:
    """What was made for this call then stands at a time that was not looked at: another key would charge twice."""
    with pytest.raises(CallTransient, match="61 s apart"):
        await look(says)
