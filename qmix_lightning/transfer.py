"""Moving tensors to a device without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Fetched", "pinned", "sent"]


def pinned(tensor: Tensor) -> Tensor:
    """``tensor`` in page-locked memory, from which a GPU copies while the CPU goes on; elsewhere it stays as it is."""
    return tensor if tensor.device.type != "cpu" or tensor.is_pinned() else tensor.pin_memory()


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``, in order with what is asked of the device next; nobody waits for it.

    A copy from ordinary memory would wait for everything that the device still has to do. Page-locked memory is not
    used again by torch before it was read.
    """
    if tensor.device == device:
        return tensor
    return (pinned(tensor) if device.type == "cuda" else tensor).to(device, non_blocking=True)


class Fetched:
    """A tensor on its way to the host, which waits for it only when it asks."""

    def __init__(self, tensor: Tensor) -> None:
        self._values = tensor.to("cpu", non_blocking=True)
        self._arrived: torch.cuda.Event | None = None
        if tensor.device.type == "cuda":
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(tensor.device))

    def __call__(self) -> Tensor:
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values
