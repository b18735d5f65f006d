"""A TCP hop that can fail: what a network does between a worker and what it stands on."""

import asyncio
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final, Self

CHUNK: Final = 64 * 1024


class Proxy:
    """Hands on bytes between its own port on 127.0.0.1 and `host:port`, unless told otherwise.

    Refusing resets each new connection rather than give the port up: a port that nobody holds may be another
    program's by the time we want it back.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._refuses = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.delay_s = 0.0
        self.accepted = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.cut()

    def cut(self) -> None:
        """Reset every connection now, at both ends; new ones are taken."""
        for writer in self._writers:
            _reset(writer)

    def pause(self) -> None:
        """Half-open: everything is taken, nothing is handed on, and neither end can tell."""
        self._flowing.clear()

    def resume(self) -> None:
        """What was held is handed on."""
        self._flowing.set()

    def refuse(self) -> None:
        """Reset whoever connects. Connections that stand are left."""
        self._refuses = True

    def accept(self) -> None:
        self._refuses = False

    def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with self._kept(writer):
            if self._refuses:
                return
            try:
                far_reader, far_writer = await asyncio.open_connection(*self._target)
            except OSError:
                return
            with self._kept(far_writer):
                await self._join(reader, writer, far_reader, far_writer)

    @contextmanager
    def _kept(self, writer: asyncio.StreamWriter) -> Iterator[None]:
        """Where `cut` finds it; reset at the end unless both sides have said all they had to say."""
        self._writers.add(writer)
        try:
            yield
        finally:
            self._writers.discard(writer)
            if not writer.is_closing():
                _reset(writer)

    async def _join(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        far_reader: asyncio.StreamReader,
        far_writer: asyncio.StreamWriter,
    ) -> None:
        """Until both sides have ended, or one is gone."""
        try:
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(reader, far_writer))
                pumps.create_task(self._pump(far_reader, writer))
        except* OSError:
            pass
        else:
            writer.close()
            far_writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One direction. Raises OSError when either end is gone, which ends the other direction too."""
        while chunk := await reader.read(CHUNK):
            if self.delay_s > 0:
                await asyncio.sleep(self.delay_s)
            await self._flowing.wait()
            writer.write(chunk)
            await writer.drain()
        await self._flowing.wait()
        writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """With lingering off, closing sends a reset rather than an orderly end."""
    connection = writer.get_extra_info("socket")
    if connection is not None:
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
