"""`reconcile`: ledger, Stripe and what was told, held against each other."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from schemas import to_major
from worker.app import build_gateway, bus_names
from worker.bus.outgoing import Outgoing
from worker.bus.publisher import Publisher
from worker.desk.letters import open_ledger
from worker.desk.screen import counted, print_block, print_json, say
from worker.errors import ConfigurationError
from worker.finding import Finding, told_money
from worker.metrics import Metrics
from worker.publish_events import EventRelay
from worker.reconcile import Reconciler
from worker.settings import Settings


async def reconcile(settings: Settings, arguments: argparse.Namespace) -> int:
    """Look, print, and with --fix repair what is certain. 0 where nothing is left that needs a person, else 1."""
    if not settings.has_stripe_key:
        raise ConfigurationError("STRIPE_API_KEY is not set: Stripe must be asked")
    if arguments.fix and not settings.has_broker:
        raise ConfigurationError("AMQP_URL is not set: what is repaired is told on the bus")
    names = bus_names(settings)
    async with (
        open_ledger(settings) as ledger,
        build_gateway(settings) as gateway,
        Publisher(settings.amqp_url.get_secret_value(), names) as publisher,
    ):
        relay = EventRelay(
            ledger=ledger, outgoing=Outgoing(publisher, names), metrics=Metrics(), clock=lambda: datetime.now(UTC)
        )
        reconciler = Reconciler(
            ledger=ledger,
            gateway=gateway,
            relay=relay,
            event_source=settings.event_source,
            clock=lambda: datetime.now(UTC),
        )
        findings = await reconciler.run(since=arguments.since, fix=arguments.fix)
    if arguments.json:
        print_json([_record(finding) for finding in findings])
    else:
        _print(findings)
    return 1 if any(not finding.is_repaired for finding in findings) else 0


def _record(finding: Finding) -> dict[str, Any]:
    """A finding for programs; amount in major units, null where it touches no money."""
    told = asdict(finding)
    return told | {"amount": to_major(finding.amount_minor, finding.currency) if finding.currency else None}


def _print(findings: Sequence[Finding]) -> None:
    if not findings:
        say("Ledger, Stripe and what was told agree.")
        return
    for finding in findings:
        about = ", ".join(filter(None, (finding.order_id and f"order {finding.order_id}", finding.payment_id)))
        print_block(
            f"{finding.kind}: {about}" if about else finding.kind,
            {
                **({"money": told_money(finding.amount_minor, finding.currency)} if finding.currency else {}),
                "what": finding.what,
                "done" if finding.is_repaired else "repair": finding.repair,
            },
        )
        say()
    left = sum(not finding.is_repaired for finding in findings)
    certain = sum(finding.is_certain and not finding.is_repaired for finding in findings)
    repairs = f"; --fix repairs {certain} of them" if certain else ""
    say(f"{counted(len(findings), 'finding')}, {left} left{repairs}.")
