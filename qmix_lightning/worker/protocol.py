"""Send and receive between a trainer and its workers: one byte a command, one byte an answer, JSON for what is rare.

Observations never pass through the socket; they lie in :class:`~qmix_lightning.worker.buffers.SharedBuffers`.
"""

from __future__ import annotations

import array
import json
import socket

__all__ = ["DONE", "FATAL", "FAULTY", "QUIT", "RESET", "STEP", "receive", "receive_descriptor", "send"]

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


def receive_descriptor(connection: socket.socket) -> int | None:
    """Receive the file descriptor that ``socket.send_fds`` sent; ``None`` if the other side is gone.

    Not ``socket.recv_fds``, which came with Python 3.9.
    """
    numbers = array.array("i")
    _, ancillary, _, _ = connection.recvmsg(16, socket.CMSG_LEN(numbers.itemsize))
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers.frombytes(data[: numbers.itemsize])
            return numbers[0]
    return None
