"""`payments show`: the life of one payment, from the first call to the last act."""

import argparse
from datetime import UTC, datetime
from typing import Final

from worker.desk.letters import open_ledger, verdict_of
from worker.desk.life_record import life_record
from worker.desk.order_seen import OrderSeen
from worker.desk.payment_page import print_page
from worker.desk.screen import print_json
from worker.errors import ConfigurationError
from worker.ledger import letters, one_payment, replays
from worker.ledger.acts import history
from worker.ledger.letters import LetterFilter
from worker.settings import Settings

# Of one order; each letter comes with its whole message.
MOST_LETTERS: Final = 100
MOST_ACTS: Final = 1000


async def show(settings: Settings, arguments: argparse.Namespace) -> None:
    """Everything that is kept of an order. Raises ConfigurationError for one that nothing is kept of."""
    order_id, now = arguments.order, datetime.now(UTC)
    chosen = LetterFilter(order_id=order_id)
    async with open_ledger(settings) as ledger:
        life = await ledger.run(one_payment.payment_life, order_id)
        requests = await ledger.run(one_payment.requests_of, order_id)
        found = await ledger.run(letters.find, chosen, limit=MOST_LETTERS)
        if life is None and not found and not requests:
            raise ConfigurationError(
                f"the ledger at {ledger.address} has nothing of the order {order_id!r}. Ids are told apart by case; "
                "see dead-letters list --state all --text with a piece of it, and payment-worker status for what "
                "still waits in a queue"
            )
        total = await ledger.run(letters.count, chosen)
        payment, operation = await ledger.run(replays.view_of_order, order_id)
        acts = await ledger.run(history, order_id=order_id, limit=MOST_ACTS)
    seen = OrderSeen(
        order_id=order_id,
        life=life,
        requests=requests,
        letters=[(letter, verdict_of(letter, payment, operation, settings=settings, now=now)) for letter in found],
        letters_total=total,
        acts=acts,
        key_horizon_s=settings.stripe_key_horizon,
        now=now,
    )
    if arguments.json:
        print_json(life_record(seen))
    else:
        print_page(seen)
