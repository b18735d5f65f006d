"""A backlog at the rate limit: how near to it the worker keeps, and how often Stripe has to refuse.

Stripe, here the sandbox, limits to the same rate, and answers 429 to what is above.
"""

from dataclasses import dataclass

from tests.benchmarks.contenders import Contender
from tests.benchmarks.drain import STEADY_FROM
from tests.benchmarks.stage import Stage

LIMIT_PER_S = 100


@dataclass(frozen=True, slots=True)
class AtTheLimit:
    """refused_share: of all calls, those answered 429.

    limit_share: of the limit, from a tenth of the events to the last one. What may go at once after a pause is not in
    it, and what comes late because it was refused is.
    """

    processes: int
    orders: int
    limit_share: float
    refused_share: float


async def drain_at_limit(stage: Stage, contender: Contender, *, orders: int, processes: int) -> AtTheLimit:
    """Takes orders / LIMIT_PER_S seconds. The processes share one ledger."""
    ledger_url = await stage.new_ledger(contender)
    async with stage.round(rate_limit=LIMIT_PER_S) as round_:
        await round_.backlog(orders)
        async with round_.run(
            contender, ledger_url=ledger_url, count=processes, STRIPE_RATE_LIMIT=str(LIMIT_PER_S)
        ) as running:
            await round_.events.until(orders, running)
        await stage.require_one_intent_each(orders)
        answers = (await stage.stripe.stats())["answers"]
    moments = list(round_.events.heard.values())
    first = int(orders * STEADY_FROM)
    refused = sum(count for answer, count in answers.items() if answer.endswith(" 429"))
    return AtTheLimit(
        processes=processes,
        orders=orders,
        limit_share=(orders - 1 - first) / (moments[-1] - moments[first]) / LIMIT_PER_S,
        refused_share=refused / sum(answers.values()),
    )
