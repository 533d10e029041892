"""Server-sent events, read within limits and without trust."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from edge.errors import RemoteError

__all__ = ["read_events"]

_MOST_BYTES = 1 << 20


def read_events(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the data of each event, and b"" for what is not one, such as the comments that keep a connection alive.

    Args:
        chunks: the body, cut anywhere.

    Raises:
        RemoteError: a line or an event is longer than 1 MiB.

    Source: WHATWG HTML, 9.2 Server-sent events.
    """
    rest = b""
    data: list[bytes] = []
    for chunk in chunks:
        rest += chunk
        *lines, rest = rest.replace(b"\r\n", b"\n").split(b"\n")
        if len(rest) > _MOST_BYTES or sum(map(len, data)) > _MOST_BYTES:
            raise RemoteError("The server sent an event longer than 1 MiB.", "Is it a server with OpenAI's protocol?")
        for line in lines:
            line = line.rstrip(b"\r")
            if not line and data:
                yield b"\n".join(data)
                data.clear()
            elif line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
        yield b""
