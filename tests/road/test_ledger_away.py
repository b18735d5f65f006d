"""The ledger goes away in the middle: consumption pauses, nothing is lost, burnt or asked twice, and work resumes."""

from collections.abc import Callable

from tests.harness import Shop, WorkerProcess, dead_letters, until
from worker.sandbox.postgres import PrivatePostgres
from worker.sandbox.stripe_control import SandboxControl


async def test_a_postgresql_that_goes_away_while_stripe_works_burns_no_message(
    make_worker: Callable[..., WorkerProcess], shop: Shop, stripe: SandboxControl, environment: dict[str, str]
) -> None:
    """The answer cannot be recorded nor the claim released: neither may keep the order from its end."""
    await shop.subscribe()
    with PrivatePostgres() as postgres:
        worker = await make_worker(DATABASE_URL=postgres.url).until_subscribed()
        await stripe.add_fault("delay", method="POST", times=1, delay_s=1.5)
        await shop.send({"order_id": "order-in-the-middle", "amount": "1.00"})
        await stripe.wait_for_rows(1, method="POST")
        await postgres.stop()
        await shop.send_all([{"order_id": f"order-{number}", "amount": "1.00"} for number in range(5)])
        await until(lambda: worker.said("consumer.paused"), what="the pause")
        await postgres.start()
        await shop.until_events(6)

        assert await dead_letters(environment | {"DATABASE_URL": postgres.url}) == []
        stats = await stripe.stats()
        assert (stats["intents"], stats["orders_with_several_intents"]) == (6, {})
        assert set(shop.events_per_order().values()) == {1}
        assert await worker.stop() == 0
