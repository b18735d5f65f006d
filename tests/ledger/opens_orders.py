"""Opens orders, many at once, and says of each once it has its answer; until it is killed. Run as a program."""

import asyncio
import os
import sys
from itertools import count

from tests.ledger.test_order_moves import opening
from worker.ledger.ledger import Ledger
from worker.ledger.order_moves import open_orders


async def main(url: str) -> None:
    numbers = count()

    async def one_after_another() -> None:
        for number in numbers:
            if await ledger.run_grouped(open_orders, opening(f"o-{number}")):
                os.write(1, f"o-{number}\n".encode())

    async with Ledger(url) as ledger:
        await asyncio.gather(*(one_after_another() for _ in range(32)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
