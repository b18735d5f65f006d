"""One delivery of an event over HTTP, signed as Stripe signs.

Source: https://docs.stripe.com/webhooks/signature. The time signed is the real one, whatever the sandbox clock says:
those who verify it compare it with theirs.
"""

import asyncio
import hmac
import time
from collections.abc import Coroutine, Iterable
from typing import Any

import aiohttp

HEADERS = {
    "Accept": "*/*",
    "Cache-Control": "no-cache",
    "Content-Type": "application/json; charset=utf-8",
    "User-Agent": "Stripe/1.0 (+https://docs.stripe.com/webhooks)",
}


def signature(body: bytes, secrets: Iterable[str], moment: int) -> str:
    """The header `Stripe-Signature`; one `v1` for each secret, two while one is being rolled."""
    signed = b"%d." % moment + body
    parts = [f"v1={hmac.new(secret.encode(), signed, 'sha256').hexdigest()}" for secret in secrets]
    return ",".join([f"t={moment}", *parts])


class Post:
    """Outlives resets of the sandbox; close it with the server."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
        """None once closed."""
        if self._closed:
            work.close()
            return None
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def deliver(self, url: str, body: bytes, secrets: Iterable[str], timeout_s: float) -> int | None:
        """The status answered, None if there was no answer. A redirect is not followed."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar()
            )
        headers = {**HEADERS, "Stripe-Signature": signature(body, secrets, int(time.time()))}
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._session.post(url, data=body, headers=headers, allow_redirects=False) as answer,
            ):
                return answer.status
        except (aiohttp.ClientError, OSError):  # TimeoutError is an OSError
            return None

    async def close(self) -> None:
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
            self._session = None
