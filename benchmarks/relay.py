"""A wide-area line on loopback: a TCP relay, in a process of its own, that holds every byte back for a while."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

ONE_WAY = 0.025
"""Seconds that a byte is on its way, in each direction."""
HOST = "127.0.0.1"
CHUNK = 2**16
ON_THE_WAY = 1024
"""Chunks on the line at most: more than any window of a peer, so that the line itself limits nobody."""


@contextmanager
def line_to(port: int, delay: float = ONE_WAY, *, host: str = HOST, besides: Sequence[int] = ()) -> Iterator[int]:
    """Run a relay to a local port; gives its own port.

    ``besides`` are ports that it relays too, each from the same port of ``host``, which must be another loopback
    address than ours: so the data connections of FTP find their way by EPSV, which says a port and no address.
    """
    command = [sys.executable, __file__, str(port), str(delay), host, *map(str, besides)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()


async def _relay(port: int, delay: float, host: str, besides: Sequence[int]) -> None:
    for other in besides:
        await _serve(other, delay, host, other)
    server = await _serve(port, delay, host, 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def _serve(port: int, delay: float, host: str, own_port: int) -> asyncio.Server:
    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(HOST, port)
        except OSError:
            writer.close()
            return
        with suppress(OSError):
            await asyncio.gather(_pass(reader, back, delay), _pass(there, writer, delay))

    return await asyncio.start_server(meet, host, own_port)


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
    line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(ON_THE_WAY)
    await asyncio.gather(_put_in(reader, line, delay), _take_out(line, writer))


async def _put_in(reader: asyncio.StreamReader, line: asyncio.Queue[tuple[float, bytes]], delay: float) -> None:
    now = asyncio.get_running_loop().time
    data = b"."
    while data:
        with suppress(OSError):  # cut at one end: the other is told, by an empty chunk, when that has arrived
            data = b""
            data = await reader.read(CHUNK)
        await line.put((now() + delay, data))


async def _take_out(line: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
    now = asyncio.get_running_loop().time
    while True:
        due, data = await line.get()
        await asyncio.sleep(max(0.0, due - now()))
        if not data:
            writer.close()
            return
        writer.write(data)
        await writer.drain()


if __name__ == "__main__":
    asyncio.run(_relay(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], list(map(int, sys.argv[4:]))))
