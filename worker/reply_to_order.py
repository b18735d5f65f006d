"""The private answer to an order service that asked for one: the only road on which a client secret leaves."""

from typing import Final

import structlog

from worker.bus.delivery import Delivery
from worker.bus.outgoing import Outgoing
from worker.client_secret import ClientSecret
from worker.errors import AccountRefused, CallRefused, Unroutable
from worker.payment import Payment, PaymentState
from worker.stripe_gateway import StripeGateway

log: Final = structlog.get_logger()


class Replies:
    """Answers where `reply_to` asks for it, and does nothing elsewhere."""

    def __init__(self, *, gateway: StripeGateway, outgoing: Outgoing) -> None:
        self._gateway = gateway
        self._outgoing = outgoing

    async def answer(self, delivery: Delivery, payment: Payment, secret: ClientSecret | None) -> None:
        """Tell what became of the payment. The secret is fetched again rather than kept.

        Raises what fetching raises while it may yet succeed, and BusUnavailable.
        """
        if not self._is_asked_for(delivery):
            return
        if payment.payment_id and secret is None:
            try:
                _, secret = await self._gateway.fetch_intent(payment.payment_id, payment.stripe_account)
            except (
                CallRefused,
                AccountRefused,
            ) as refused:  # the order is decided and told; only the answer has to do without
                log.warning("reply.without_secret", error=str(refused))
        has_failed = payment.state is PaymentState.FAILED and payment.status != "canceled"
        await self._send(
            delivery,
            order_id=payment.order_id,
            payment_id=payment.payment_id,
            status="failed" if has_failed else payment.status or "unknown",
            client_secret=secret,
        )

    async def answer_dead_lettered(self, delivery: Delivery, order_id: str | None) -> None:
        """Tell that a person has to look, so that nobody waits in vain. Raises BusUnavailable."""
        if self._is_asked_for(delivery):
            await self._send(delivery, order_id=order_id, payment_id=None, status="dead_lettered", client_secret=None)

    def _is_asked_for(self, delivery: Delivery) -> bool:
        reply_to = delivery.properties.reply_to
        return bool(reply_to) and self._outgoing.may_reply_to(reply_to or "")

    async def _send(
        self,
        delivery: Delivery,
        *,
        order_id: str | None,
        payment_id: str | None,
        status: str,
        client_secret: ClientSecret | None,
    ) -> None:
        try:
            await self._outgoing.reply(
                to=delivery.properties.reply_to or "",
                correlation_id=delivery.properties.correlation_id,
                order_id=order_id,
                payment_id=payment_id,
                status=status,
                client_secret=client_secret,
            )
        except Unroutable:
            log.info("reply.nobody_waits", reply_to=delivery.properties.reply_to)
