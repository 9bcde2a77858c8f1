"""Store rows of bytes, first in, first out, in a buffer that grows without being copied."""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmix_lightning.errors import RunError

__all__ = ["PADDING_ROW", "GrowableBuffer", "RowQueue"]

PADDING_ROW = -1
"""The index of the padding row, which is always there: what padding and dead agents show."""

_LEAST_ROWS, _MOST_ROWS = 32, 1 << 16
_CHUNKS = 2048
_LEAST_GROWTH = 1 << 16


class GrowableBuffer:
    """A buffer of bytes that start as zeros and can grow; nothing is resident before it is written.

    Args:
        folder: where a file holds them; ``None``: an anonymous map. The file has no name, so that nothing is left of it
            when the process ends, in whatever way.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._file = -1
        self._map: mmap.mmap | None = None

    def __len__(self) -> int:
        return 0 if self._map is None else len(self._map)

    def grow(self, size: int) -> NDArray[np.uint8]:
        """Return all bytes, now at least ``size`` of them. No array that was returned before may be in use any more.

        Raises:
            RunError: the disk or the host memory is full.
        """
        size = -(-max(size, len(self) + max(_LEAST_GROWTH, len(self) // 8)) // mmap.PAGESIZE) * mmap.PAGESIZE
        try:
            self._map = self._anonymous(size) if self._folder is None else self._of_file(self._folder, size)
        except (OSError, MemoryError) as error:
            where = "host memory" if self._folder is None else f"disk at {self._folder}"
            raise RunError(f"the replay needs {size:,} bytes, for which the {where} has no room: {error}") from error
        return np.frombuffer(self._map, np.uint8)

    def _anonymous(self, size: int) -> mmap.mmap:
        if self._map is not None:
            try:
                self._map.resize(size)  # moves the pages' addresses, not the pages
                return self._map
            except SystemError:  # a system without mremap
                pass
        grown = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if self._map is not None:
            grown[: len(self._map)] = self._map[:]
            self._map.close()
        return grown

    def _of_file(self, folder: Path, size: int) -> mmap.mmap:
        if self._file < 0:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                self._file = os.dup(file.fileno())
            weakref.finalize(self, os.close, self._file)
        if self._map is not None:
            self._map.close()
            self._map = None
        if hasattr(os, "posix_fallocate"):
            # A full disk is an error here; met while writing to the map it would be a SIGBUS.
            os.posix_fallocate(self._file, 0, size)
        else:
            os.ftruncate(self._file, size)
        return mmap.mmap(self._file, size)


class RowQueue:
    """A queue of rows of ``width`` items, which are appended at the end, read anywhere and released at the front.

    A row's index is how many were appended before it. Rows lie in chunks; a chunk whose rows have all been released is
    used again, so the bytes in use are those of the rows held and less than two chunks. Nothing is ever moved.

    Args:
        width: items of a row.
        dtype: of an item.
        expected_rows: how many rows will be held; decides the size of a chunk and nothing else.
        folder: see :class:`GrowableBuffer`.
        padding_row: the content of the row ``PADDING_ROW``; zeros if it is not given.
    """

    def __init__(
        self,
        width: int,
        dtype: np.dtype,
        *,
        expected_rows: int,
        folder: Path | None = None,
        padding_row: NDArray[Any] | None = None,
    ) -> None:
        self.width = width
        self.dtype = np.dtype(dtype)
        self.row_bytes = width * self.dtype.itemsize
        wanted = min(max(expected_rows // _CHUNKS, _LEAST_ROWS), _MOST_ROWS)
        self._shift = wanted.bit_length() - 1
        self.chunk_rows = 1 << self._shift  # a power of two
        self._memory = GrowableBuffer(folder)
        self._padding_row = padding_row
        self._rows: NDArray[Any] = np.empty((0, width), self.dtype)
        self._chunks = 0  # chunks that have ever been used
        self._free: list[int] = []
        self._place = np.zeros(8, np.int64)  # where chunk number c of the queue lies, at c modulo the size
        self.first = 0
        self.end = 0

    @property
    def nbytes(self) -> int:
        """Return the bytes in use: those of every chunk that was ever needed."""
        return self._chunks * self.chunk_rows * self.row_bytes

    def append(self, rows: NDArray[Any]) -> int:
        """Add ``rows [K, width]``; return the index of the first."""
        start, self.end = self.end, self.end + len(rows)
        self._provide((start + self.chunk_rows - 1) >> self._shift, (self.end + self.chunk_rows - 1) >> self._shift)
        written, whole, mask = 0, self.chunk_rows, len(self._place) - 1
        while written < len(rows):  # a piece for each chunk
            chunk, within = divmod(start + written, whole)
            piece = rows[written : written + whole - within]
            self._write(1 + (int(self._place[chunk & mask]) << self._shift) + within, piece)
            written += len(piece)
        return start

    def _write(self, place: int, rows: NDArray[Any]) -> None:
        self._rows[place : place + len(rows)] = rows

    def release(self, first: int) -> None:
        """Release the rows before ``first``, which are not needed any more."""
        mask = len(self._place) - 1
        for chunk in range(self.first >> self._shift, first >> self._shift):
            self._free.append(int(self._place[chunk & mask]))
        self.first = first

    def gather(self, index: NDArray[np.int64], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return copies of the rows of ``index [...]``: ``[..., width]``; ``PADDING_ROW`` is the padding row.

        Args:
            index: of rows that are held, or ``PADDING_ROW``.
            out: where to write them.
        """
        place = np.where(index < 0, 0, self._locate(index))
        if self._rows.shape[0] == 0:
            self._grow(0)
        # clip: indices are right, and checking them would need a copy
        return np.take(self._rows, place, axis=0, out=out, mode="clip")

    def _locate(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        chunk = self._place[(index >> self._shift) & (len(self._place) - 1)]
        return 1 + (chunk << self._shift) + (index & (self.chunk_rows - 1))

    def _provide(self, begin: int, end: int) -> None:
        """Find room for the chunks ``begin`` to ``end`` (excluded) of the queue."""
        oldest = self.first >> self._shift
        if end - oldest > len(self._place):
            numbers = np.arange(oldest, begin)
            old = self._place
            self._place = np.zeros(1 << (end - oldest - 1).bit_length(), np.int64)
            self._place[numbers & (len(self._place) - 1)] = old[numbers & (len(old) - 1)]
        for number in range(begin, end):
            if not self._free:
                self._free.append(self._chunks)
                self._chunks += 1
                self._grow(self._chunks)
            self._place[number & (len(self._place) - 1)] = self._free.pop()

    def _grow(self, chunks: int) -> None:
        needed = (1 + chunks * self.chunk_rows) * self.row_bytes
        if needed <= self._rows.nbytes:
            return
        empty = self._rows.nbytes == 0
        self._rows = np.empty((0, self.width), self.dtype)  # nothing may point into a buffer that moves
        found = self._memory.grow(needed)
        whole = len(found) // self.row_bytes * self.row_bytes
        self._rows = found[:whole].view(self.dtype).reshape(-1, self.width)
        if empty and self._padding_row is not None:
            self._rows[0] = self._padding_row
