"""Client of the sandbox's control surface, for the demo and for tests whose sandbox runs in another process."""

from types import TracebackType
from typing import Any, Self

import aiohttp

MAX_WAIT_S = 60.0  # the server waits no longer than this for a row


class SandboxError(RuntimeError):
    """The sandbox refused the call; the text says why."""


class SandboxControl:
    """`async with SandboxControl(base_url) as control: …`. Answers are the JSON of `stripe_control_routes`."""

    def __init__(self, base_url: str) -> None:
        self._base = base_url.rstrip("/") + "/_sandbox/"
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=MAX_WAIT_S + 10))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def record(self, *, since: int = 0, limit: int = 1000, **where: str | int) -> list[dict[str, Any]]:
        """Requests as received, oldest first; `where` is any of stripe_record.FILTERS."""
        answer = await self._call("GET", "record", since=since, limit=limit, **where)
        rows: list[dict[str, Any]] = answer["rows"]
        return rows

    async def wait_for_rows(
        self, want: int = 1, *, timeout_s: float = 10.0, since: int = 0, **where: str | int
    ) -> list[dict[str, Any]]:
        """Wait until at least `want` requests are there as described. Raises TimeoutError."""
        answer = await self._call("GET", "record", since=since, want=want, wait_s=timeout_s, **where)
        rows: list[dict[str, Any]] = answer["rows"]
        if len(rows) < want:
            raise TimeoutError(f"{len(rows)} of {want} requests like {where} within {timeout_s} s")
        return rows

    async def intents(self, *, order_id: str | None = None, skip: int = 0, limit: int = 1000) -> list[dict[str, Any]]:
        """PaymentIntents of all accounts, oldest first, without client_secret and with their account."""
        where = {} if order_id is None else {"order_id": order_id}
        answer = await self._call("GET", "intents", skip=skip, limit=limit, **where)
        intents: list[dict[str, Any]] = answer["intents"]
        return intents

    async def stats(self, *, per_order: bool = False) -> dict[str, Any]:
        return await self._call("GET", "stats", per_order="true" if per_order else "false")

    async def faults(self) -> list[dict[str, Any]]:
        """The plan, each fault with how often it has fired."""
        answer = await self._call("GET", "faults")
        faults: list[dict[str, Any]] = answer["faults"]
        return faults

    async def add_fault(self, kind: str, **details: Any) -> None:
        """See stripe_faults for kinds and details. Raises SandboxError for a fault that makes no sense."""
        await self._call("POST", "faults", kind=kind, **details)

    async def clear_faults(self) -> None:
        await self._call("DELETE", "faults")

    async def release(self) -> None:
        await self._call("POST", "release")

    async def advance_clock(self, seconds: float) -> float:
        """The sandbox's time after it, in seconds since the epoch."""
        return float((await self._call("POST", "clock", advance_s=seconds))["now"])

    async def change_settings(self, **settings: Any) -> dict[str, Any]:
        return await self._call("POST", "settings", **settings)

    async def act(self, object_id: str, deed: str, **details: Any) -> dict[str, Any]:
        """Be the customer or the bank; the object as it is then, without client_secret. Raises SandboxError.

        On an intent: authenticate, fail_authentication, settle, fail, expire, pay (payment_method), dispute (reason,
        amount, inquiry). On an intent, for its latest one, or on the object itself: settle_balance (charge),
        settle_refund, fail_refund (failure_reason), update_dispute (status), close_dispute (status).
        """
        return await self._call("POST", "act", object=object_id, deed=deed, **details)

    async def objects(self, resource: str, *, intent_id: str | None = None) -> list[dict[str, Any]]:
        """Charges, refunds, disputes or balance_transactions of all accounts, oldest first."""
        where = {} if intent_id is None else {"intent": intent_id}
        found: list[dict[str, Any]] = (await self._call("GET", "objects", resource=resource, **where))["objects"]
        return found

    async def events(self, *, object_id: str | None = None) -> list[dict[str, Any]]:
        """What was told, oldest first, without the snapshots: id, type, object, account, created, request."""
        where = {} if object_id is None else {"object": object_id}
        events: list[dict[str, Any]] = (await self._call("GET", "events", **where))["events"]
        return events

    async def add_webhook(self, url: str, secrets: list[str], **details: Any) -> str:
        """The new endpoint's id; details are enabled_events (names or globs), api_version, account, livemode."""
        added = await self._call("POST", "webhooks", url=url, secrets=secrets, **details)
        return str(added["endpoint_id"])

    async def change_webhook(self, endpoint_id: str, **changes: Any) -> None:
        """Such as `secrets`: both, while one is being rolled."""
        await self._call("POST", "webhooks", endpoint=endpoint_id, **changes)

    async def remove_webhook(self, endpoint_id: str) -> None:
        await self._call("DELETE", "webhooks", endpoint=endpoint_id)

    async def webhooks(self) -> list[dict[str, Any]]:
        """The endpoints, without their secrets."""
        endpoints: list[dict[str, Any]] = (await self._call("GET", "webhooks"))["webhooks"]
        return endpoints

    async def deliveries(self) -> list[dict[str, Any]]:
        """Each attempt to deliver an event, oldest first: event, type, object, endpoint, number, at, status."""
        attempts: list[dict[str, Any]] = (await self._call("GET", "deliveries"))["deliveries"]
        return attempts

    async def wait_for_deliveries(self, *, timeout_s: float = 10.0) -> dict[str, Any]:
        """Wait until each event has been taken or given up by each endpoint. Raises TimeoutError."""
        stats = await self._call("POST", "deliveries/settled", timeout_s=timeout_s)
        if stats["outstanding"]:
            raise TimeoutError(f"{stats['outstanding']} deliveries are outstanding after {timeout_s} s")
        return stats

    async def resend_event(self, event_id: str, *, endpoint_id: str | None = None) -> None:
        """To one endpoint or all, once more."""
        where = {} if endpoint_id is None else {"endpoint": endpoint_id}
        await self._call("POST", "deliveries/resend", event=event_id, **where)

    async def reset(self) -> None:
        await self._call("POST", "reset")

    async def _call(self, method: str, name: str, /, **arguments: Any) -> dict[str, Any]:
        if self._session is None:
            raise RuntimeError("use the control client inside its `async with` block")
        sent: dict[str, Any] = {"params": arguments} if method == "GET" else {"json": arguments}
        async with self._session.request(method, self._base + name, **sent) as response:
            answer: dict[str, Any] = await response.json()
            if response.status != 200:
                raise SandboxError(answer.get("error", f"status {response.status}"))
            return answer
