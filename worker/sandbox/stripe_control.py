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

    async def act(self, intent_id: str, deed: str) -> dict[str, Any]:
        """Be the customer or the bank: authenticate, fail_authentication, settle, fail, expire."""
        return await self._call("POST", "act", intent=intent_id, deed=deed)

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
