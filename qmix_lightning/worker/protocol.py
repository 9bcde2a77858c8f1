"""Send and receive between a trainer and its workers: one byte a command, one byte an answer, JSON for what is rare.

Observations never pass through the socket; they lie in :class:`~qmix_lightning.worker.buffers.SharedBuffers`.
``docs/worker_protocol.md`` describes the wire.
"""

from __future__ import annotations

import array
import json
import socket

__all__ = [
    "DONE",
    "FATAL",
    "FAULTY",
    "QUIT",
    "RENDER",
    "RESET",
    "STEP",
    "VERSION",
    "receive",
    "receive_bytes",
    "receive_descriptor",
    "send",
    "send_bytes",
]

VERSION = 1
"""Of the wire; both sides say theirs, and a worker of another version is refused."""

RESET, STEP, RENDER, QUIT = b"r", b"s", b"v", b"q"
DONE, FAULTY, FATAL = b"d", b"f", b"x"

LARGEST_MESSAGE = 64 * 2**20
"""Bytes; more is no answer of a worker, and is not read."""


def send_bytes(connection: socket.socket, data: bytes) -> None:
    """Send bytes with their length before them, eight bytes in network order."""
    connection.sendall(len(data).to_bytes(8, "big") + data)


def receive_bytes(connection: socket.socket) -> bytes:
    """Return what :func:`send_bytes` sent.

    Raises:
        EOFError: the other side is gone.
        ConnectionError: it announces more than any message has.
    """

    def exactly(n: int) -> bytes:
        parts = bytearray()
        while len(parts) < n:
            part = connection.recv(min(n - len(parts), 2**20))
            if not part:
                raise EOFError
            parts += part
        return bytes(parts)

    length = int.from_bytes(exactly(8), "big")
    if length > LARGEST_MESSAGE:
        raise ConnectionError("it sent what is no message")
    return exactly(length)


def send(connection: socket.socket, value: object) -> None:
    """Send a JSON value with its length before it; for what is rare."""
    send_bytes(connection, json.dumps(value).encode())


def receive(connection: socket.socket) -> object:
    """Return what :func:`send` sent.

    Raises:
        EOFError: the other side is gone.
        ConnectionError: it sent something else.
    """
    data = receive_bytes(connection)
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise ConnectionError("it sent what is no message") from None


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
