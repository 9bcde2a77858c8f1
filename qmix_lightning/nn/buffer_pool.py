"""Reuse large buffers: a tensor is made over one that no tensor refers to any more, where there is one.

On a CPU a fresh large allocation costs more than filling it: the system hands its pages out one by one and takes them
back when it is freed, about a third of a millisecond for each megabyte. On a GPU torch keeps freed buffers by itself.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["held_bytes", "pooled_empty"]

_SMALLEST = 1 << 20
"""Bytes below which the C library keeps freed buffers itself."""
_ALIGNMENT = 64
_SLACK = 1.25
"""Batches differ in size: a buffer a little too large is not outgrown by the next one."""

_buffers: list[bytearray] = []
_lock = threading.Lock()


def _is_free(index: int) -> bool:
    # A tensor over a buffer holds a reference to it, and so does every view and graph that needs the tensor. The list
    # and the call of getrefcount hold the two others.
    return sys.getrefcount(_buffers[index]) == 2


def _take(need: int) -> bytearray:
    free = sorted((len(_buffers[i]), i) for i in range(len(_buffers)) if _is_free(i))
    for size, index in free:
        if size >= need:
            return _buffers[index]
    if free:
        del _buffers[free[-1][1]]  # outgrown: one buffer is replaced, so their number is that of those in use at once
    _buffers.append(bytearray(int(need * _SLACK)))
    return _buffers[-1]


def pooled_empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return an uninitialised tensor, as ``torch.empty``, over a buffer that was used before where there is one.

    The buffer is free again as soon as no tensor and no graph refers to it.
    """
    count = 1
    for size in shape:
        count *= size
    if device.type != "cpu" or count * dtype.itemsize < _SMALLEST:
        return torch.empty(shape, dtype=dtype, device=device)
    with _lock:
        buffer = _take(count * dtype.itemsize + _ALIGNMENT)
        start = -torch.frombuffer(buffer, dtype=torch.uint8, count=1).data_ptr() % _ALIGNMENT
        return torch.frombuffer(buffer, dtype=dtype, count=count, offset=start).view(tuple(shape))


def held_bytes() -> int:
    """Return the bytes of all buffers, in use or not."""
    return sum(len(buffer) for buffer in _buffers)
