"""Send and receive between a trainer and its workers: one byte a command, one byte an answer, JSON for what is rare.

Observations never pass through the socket; they lie in :class:`~qmix_lightning.worker.buffers.SharedBuffers`.
"""

from __future__ import annotations

import json
import socket

__all__ = ["DONE", "FATAL", "FAULTY", "QUIT", "RESET", "STEP", "receive", "send"]

RESET, STEP, QUIT = b"r", b"s", b"q"
DONE, FAULTY, FATAL = b"d", b"f", b"x"


def send(connection: socket.socket, value: object) -> None:
    """Send a JSON value with its length before it; for what is rare."""
    data = json.dumps(value).encode()
    connection.sendall(len(data).to_bytes(8, "big") + data)


def receive(connection: socket.socket) -> object:
    """Return what :func:`send` sent; raise ``EOFError`` if the other side is gone."""

    def exactly(n: int) -> bytes:
        parts = bytearray()
        while len(parts) < n:
            part = connection.recv(n - len(parts))
            if not part:
                raise EOFError
            parts += part
        return bytes(parts)

    return json.loads(exactly(int.from_bytes(exactly(8), "big")))
