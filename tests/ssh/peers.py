"""What stands at the other end of a stream in tests, and what every connection has to be able to do."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from rbee.transport.connection import Connection, Stream

_REMOTE = Path(__file__).resolve().parents[2] / "remote"
_RUN_PIPE = f"import sys; sys.path.insert(0, {str(_REMOTE)!r}); from rbee_remote.__main__ import main; main()"

#: The node's `pipe` command, from the checkout.
PIPE = (sys.executable, "-I", "-c", _RUN_PIPE, "pipe")


@asynccontextmanager
async def shouting(path: Path) -> AsyncIterator[str]:
    """A socket whose server answers in capitals and hangs up after the client has."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(2**16):
            writer.write(data.upper())
            await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    async with server:
        yield str(path)


async def exactly(stream: Stream, size: int) -> bytes:
    """That many bytes of a stream; it must not end before."""
    data = b""
    while len(data) < size:
        piece = await stream.read(2**16)
        assert piece, f"the stream ended after {len(data)} of {size} bytes"
        data += piece
    return data


async def everything_works(connection: Connection, folder: Path) -> None:
    """Scripts beside each other, a file, and two streams beside a script."""
    done = await asyncio.gather(*(connection.run(f"echo {number}; exit {number}") for number in range(3)))
    assert [(each.stdout, each.status) for each in done] == [(b"0\n", 0), (b"1\n", 1), (b"2\n", 2)]
    await connection.put(b"content", str(folder / "put"), sha256=hashlib.sha256(b"content").hexdigest())
    assert (folder / "put").read_bytes() == b"content"
    async with shouting(folder / "s.sock") as socket:
        streams = [await connection.open_stream(socket), await connection.open_stream(socket)]
        async with connection.stream_script("echo started; exec sleep 600") as lines:
            assert await anext(lines) == b"started"
            for stream in streams:
                await stream.write(b"hello")
            assert [await exactly(stream, 5) for stream in streams] == [b"HELLO", b"HELLO"]
        for stream in streams:
            await stream.aclose()
