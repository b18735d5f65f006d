"""The failing hop itself: a chaos run proves nothing if its trouble does not happen."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from tests.chaos.proxy import Proxy

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    """In front of a server that sends back what it gets, and ends when we do."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1000):
                writer.write(data)
        except OSError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server, Proxy("127.0.0.1", server.sockets[0].getsockname()[1]) as proxy:
        yield proxy


async def dial(proxy: Proxy) -> Connection:
    return await asyncio.open_connection("127.0.0.1", proxy.port)


async def echoed(connection: Connection, data: bytes, timeout_s: float = 5) -> bytes:
    reader, writer = connection
    writer.write(data)
    return await asyncio.wait_for(reader.readexactly(len(data)), timeout_s)


async def test_bytes_and_the_end_are_handed_on(proxy: Proxy) -> None:
    reader, writer = connection = await dial(proxy)
    large = bytes(range(256)) * 4000

    assert await echoed(connection, large) == large
    writer.write_eof()
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


async def test_a_cut_resets_what_stands_and_takes_what_comes(proxy: Proxy) -> None:
    reader, _ = connection = await dial(proxy)
    await echoed(connection, b"1")
    proxy.cut()

    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(reader.read(), 5)
    again = await dial(proxy)
    assert await echoed(again, b"2") == b"2"
    again[1].close()


async def test_a_pause_holds_bytes_and_nobody_can_tell(proxy: Proxy) -> None:
    connection = await dial(proxy)
    await echoed(connection, b"1")
    proxy.pause()

    with pytest.raises(TimeoutError):
        await echoed(connection, b"2", timeout_s=0.2)
    proxy.resume()
    assert await asyncio.wait_for(connection[0].readexactly(1), 5) == b"2"
    connection[1].close()


async def test_a_refusal_is_for_new_connections_alone(proxy: Proxy) -> None:
    old = await dial(proxy)
    await echoed(old, b"1")
    proxy.refuse()

    refused = await dial(proxy)
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(refused[0].read(), 5)
    assert await echoed(old, b"2") == b"2"
    proxy.accept()
    new = await dial(proxy)
    assert await echoed(new, b"3") == b"3"
    for _, writer in (old, new):
        writer.close()


async def test_a_delay_slows_both_ways(proxy: Proxy) -> None:
    connection = await dial(proxy)
    proxy.delay_s = 0.1
    began = time.monotonic()

    assert await echoed(connection, b"1") == b"1"
    assert time.monotonic() - began >= 0.2
    connection[1].close()


async def test_a_server_that_is_away_looks_like_one() -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    async with Proxy("127.0.0.1", port) as proxy:
        reader, _ = await dial(proxy)
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), 5)
