"""Webhook endpoints, and the delivery of events to them.

Source: https://docs.stripe.com/webhooks: at least once, in no order, anything but a 2xx is tried again with growing
pauses for up to three days. How often duplicates, second events and reordering come is set by the test.
"""

import asyncio
import contextlib
from collections import Counter, deque
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import partial
from random import Random
from typing import Any
from urllib.parse import urlsplit

from worker.sandbox.stripe_agenda import Agenda
from worker.sandbox.stripe_events import Event
from worker.sandbox.stripe_post import Post
from worker.sandbox.stripe_settings import Settings
from worker.sandbox.stripe_store import SandboxClock, new_id

SHUFFLE_WAIT_S = 0.1  # how long an incomplete window waits for more
MAX_SECRETS = 2


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`enabled_events` are names or globs; `account` and `livemode` narrow what it gets, None is all."""

    endpoint_id: str
    url: str
    secrets: tuple[str, ...]
    enabled_events: tuple[str, ...] = ("*",)
    api_version: str | None = None
    account: str | None = None
    livemode: bool | None = None

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in {"http", "https"}:
            raise ValueError("an endpoint needs an http or https url")
        given = self.secrets if isinstance(self.secrets, tuple) else ()
        if not 1 <= len(given) <= MAX_SECRETS or not all(isinstance(one, str) and one for one in given):
            raise ValueError("an endpoint needs a list of one secret, or of two while it is rolled")

    def wants(self, event: Event) -> bool:
        return (
            self.account in {None, event.scope.account}
            and self.livemode in {None, event.scope.livemode}
            and any(fnmatchcase(event.type, glob) for glob in self.enabled_events)
        )

    def describe(self) -> dict[str, Any]:
        """Without its secrets."""
        return {name: value for name, value in asdict(self).items() if name != "secrets"}


@dataclass(slots=True, eq=False)
class Delivery:
    event: Event
    endpoint_id: str
    tries: int = 0


@dataclass(frozen=True, slots=True)
class Attempt:
    """One POST. `status` is None where no answer came."""

    event: str
    type: str
    object: str
    endpoint: str
    number: int
    at: float
    status: int | None


class Webhooks:
    """`ring` is how many attempts are remembered."""

    def __init__(self, clock: SandboxClock, agenda: Agenda, post: Post, dice: Random, *, ring: int) -> None:
        self._clock = clock
        self._agenda = agenda
        self._post = post
        self._dice = dice
        self._settings = Settings()
        self.endpoints: dict[str, Endpoint] = {}
        self.attempts: deque[Attempt] = deque(maxlen=ring)
        self.counts: Counter[str] = Counter()
        self.outstanding = 0
        self._gathered: list[Delivery] = []
        self._ready: deque[Delivery] = deque()
        self._under_way: set[asyncio.Task[None]] = set()
        self._all_settled = asyncio.Event()
        self._all_settled.set()

    def add(self, url: str, secrets: list[str], **details: Any) -> Endpoint:
        """Raises ValueError, or TypeError for a detail that an endpoint does not have."""
        return self._put(new_id("we"), {"url": url, "secrets": secrets, **details})

    def change(self, endpoint_id: str, **details: Any) -> Endpoint:
        """Such as its secrets, to roll one. Deliveries that wait go out as it is then."""
        before = self._endpoint(endpoint_id)
        return self._put(endpoint_id, before.describe() | {"secrets": before.secrets} | details)

    def remove(self, endpoint_id: str) -> None:
        """What it has not taken is not waited for any more."""
        self._endpoint(endpoint_id)
        del self.endpoints[endpoint_id]

    def take_up(self, settings: Settings) -> None:
        self._settings = settings
        self._start_ready()

    def take(self, event: Event) -> None:
        """Have the event delivered to all who want it."""
        for endpoint in self.endpoints.values():
            if endpoint.wants(event):
                self._owe(event, endpoint)
                if self._dice.random() < self._settings.webhook_duplicates:
                    self._owe(event, endpoint)

    def resend(self, event: Event, endpoint_id: str | None = None) -> int:
        """Deliver once more, beside whatever retries go on; to how many endpoints. Raises ValueError."""
        chosen = [self._endpoint(endpoint_id)] if endpoint_id else list(self.endpoints.values())
        for endpoint in chosen:
            self._owe(event, endpoint)
        return len(chosen)

    async def settled(self, timeout_s: float) -> bool:
        """Wait until every delivery has been taken or given up; whether that came to be in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._all_settled.wait()
        return self.outstanding == 0

    def stats(self) -> dict[str, Any]:
        return {"outstanding": self.outstanding, **self.counts}

    def close(self) -> None:
        """Nothing more goes out."""
        self.endpoints.clear()
        self._gathered.clear()
        self._ready.clear()
        for task in self._under_way:
            task.cancel()

    def _endpoint(self, endpoint_id: str) -> Endpoint:
        if endpoint_id not in self.endpoints:
            raise ValueError(f"no endpoint {endpoint_id}")
        return self.endpoints[endpoint_id]

    def _put(self, endpoint_id: str, details: dict[str, Any]) -> Endpoint:
        details.pop("endpoint_id", None)
        for name in ("secrets", "enabled_events"):
            if isinstance(details.get(name), list):
                details[name] = tuple(details[name])
        endpoint = self.endpoints[endpoint_id] = Endpoint(endpoint_id, **details)
        return endpoint

    def _owe(self, event: Event, endpoint: Endpoint) -> None:
        if event.undelivered is None:
            event.undelivered = set()
        event.undelivered.add(endpoint.endpoint_id)
        self.outstanding += 1
        self._all_settled.clear()
        delivery = Delivery(event, endpoint.endpoint_id)
        if self._settings.webhook_shuffle == 1:
            self._schedule(delivery)
            return
        self._gathered.append(delivery)
        if len(self._gathered) >= self._settings.webhook_shuffle:
            self._shuffle()
        else:
            self._agenda.after(SHUFFLE_WAIT_S, self._shuffle)

    def _shuffle(self) -> None:
        self._dice.shuffle(self._gathered)
        gathered, self._gathered = self._gathered, []
        for delivery in gathered:
            self._schedule(delivery)

    def _schedule(self, delivery: Delivery) -> None:
        low, high = self._settings.webhook_delay_s
        if high > 0:
            self._agenda.after(self._dice.uniform(low, high), partial(self._make_ready, delivery))
        else:
            self._make_ready(delivery)

    def _make_ready(self, delivery: Delivery) -> None:
        self._ready.append(delivery)
        self._start_ready()

    def _start_ready(self) -> None:
        while (
            self._ready
            and not self._settings.webhook_paused
            and len(self._under_way) < self._settings.webhook_concurrency
        ):
            task = self._post.start(self._deliver(self._ready.popleft()))
            if task is None:
                return
            self._under_way.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._start_ready()

    async def _deliver(self, delivery: Delivery) -> None:
        event, endpoint = delivery.event, self.endpoints.get(delivery.endpoint_id)
        if endpoint is None:
            self._done(delivery)
            return
        body = event.render(endpoint.api_version or self._settings.api_version)
        status = await self._post.deliver(endpoint.url, body, endpoint.secrets, self._settings.webhook_timeout_s)
        delivery.tries += 1
        self.attempts.append(
            Attempt(
                event.object_id,
                event.type,
                event.about,
                endpoint.endpoint_id,
                delivery.tries,
                self._clock.now(),
                status,
            )
        )
        if status is not None and 200 <= status < 300:
            self.counts["delivered"] += 1
            self._done(delivery)
            return
        self.counts["failed_attempts"] += 1
        if delivery.tries >= self._settings.webhook_tries:
            self.counts["given_up"] += 1
            self._settle_one()
            return
        pause_s = self._settings.webhook_retry_s * 2 ** (delivery.tries - 1)
        self._agenda.after(pause_s, partial(self._make_ready, delivery))

    def _done(self, delivery: Delivery) -> None:
        if delivery.event.undelivered is not None:
            delivery.event.undelivered.discard(delivery.endpoint_id)
        self._settle_one()

    def _settle_one(self) -> None:
        self.outstanding -= 1
        if self.outstanding == 0:
            self._all_settled.set()
