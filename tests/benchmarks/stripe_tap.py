"""A relay in front of the sandbox that notes how long Stripe took for each order's call, as the caller's side sees it.

It passes bytes and reads none but the order id in the call's form. HTTP/1.1 without pipelining is all it knows: on a
connection, what the client sends after an answer has begun is the next call (RFC 9112, 9.3).
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

CHUNK_BYTES = 65_536
_ORDER_ID = re.compile(rb"metadata(?:%5B|\[)order_id(?:%5D|\])=([A-Za-z0-9._:-]+)")


class StripeTap:
    """`stripe_s` has the seconds of each order's last call: from its first byte here to the last byte of its answer."""

    def __init__(self, stripe_url: str) -> None:
        address = urlsplit(stripe_url)
        self._host, self._port = str(address.hostname), int(address.port or 80)
        self.stripe_s: dict[str, float] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of the worker's, to its end."""
        upstream, to_stripe = await asyncio.open_connection(self._host, self._port)
        call = _Call()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass_calls(call, reader, to_stripe))
                group.create_task(self._pass_answers(call, upstream, writer))
        except* ConnectionError:
            pass
        finally:
            to_stripe.close()
            writer.close()

    async def _pass_calls(self, call: "_Call", reader: asyncio.StreamReader, to_stripe: asyncio.StreamWriter) -> None:
        while piece := await reader.read(CHUNK_BYTES):
            if call.is_answered:
                call.begin()
            call.sent += piece
            to_stripe.write(piece)
        to_stripe.close()

    async def _pass_answers(self, call: "_Call", upstream: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await upstream.read(CHUNK_BYTES):
            writer.write(piece)
            call.is_answered = True
            if found := _ORDER_ID.search(call.sent):
                self.stripe_s[found[1].decode()] = time.monotonic() - call.began
        writer.close()


class _Call:
    """What is under way on a connection."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.is_answered = True
        self.began = 0.0

    def begin(self) -> None:
        self.sent.clear()
        self.is_answered = False
        self.began = time.monotonic()


@asynccontextmanager
async def tapped(stripe_url: str) -> AsyncIterator[tuple[StripeTap, str]]:
    """The tap, and the address to give to the worker instead of Stripe's."""
    tap = StripeTap(stripe_url)
    server = await asyncio.start_server(tap.serve, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        yield tap, f"http://127.0.0.1:{port}"
    finally:
        server.close()
        await server.wait_closed()
