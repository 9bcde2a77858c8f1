"""Move tensors between host and device without waiting for the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Fetched", "copy_values", "on_host", "pinned", "sent", "true_positions"]


def pinned(tensor: Tensor) -> Tensor:
    """Return ``tensor`` in page-locked memory, from which a GPU copies while the CPU goes on; elsewhere as it is."""
    return tensor if tensor.device.type != "cpu" or tensor.is_pinned() else tensor.pin_memory()


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return ``tensor`` on ``device``, in order with what the device is to do next; nobody waits for it.

    A copy from pageable memory would wait for everything that the device still has to do. Page-locked memory is not
    used again by torch before it was read.
    """
    if tensor.device == device:
        return tensor
    return (pinned(tensor) if device.type == "cuda" else tensor).to(device, non_blocking=True)


@torch.no_grad()
def copy_values(to: Sequence[Tensor], of: Sequence[Tensor]) -> None:
    """Write the values of each of ``of`` into its place in ``to``; between devices as one copy for each dtype."""
    here = {t.device for t in to}
    if len(here) == 1 and any(t.device not in here for t in of):
        of = _moved(of, here.pop())
    for mine, theirs in zip(to, of, strict=True):
        mine.copy_(theirs)


def on_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the values of ``tensors`` in host memory; from a device as one copy for each dtype."""
    return _moved(tensors, torch.device("cpu"))


@torch.no_grad()
def _moved(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    moved = {i: t.detach() for i, t in enumerate(tensors) if t.device == device}
    others = {i: t for i, t in enumerate(tensors) if t.device != device}
    for dtype in dict.fromkeys(t.dtype for t in others.values()):
        alike = {i: t for i, t in others.items() if t.dtype == dtype}
        joined = torch.cat([t.flatten() for t in alike.values()]).to(device)
        parts = joined.split([t.numel() for t in alike.values()])
        moved |= {i: part.view(t.shape) for (i, t), part in zip(alike.items(), parts, strict=True)}
    return [moved[i] for i in range(len(tensors))]


class Fetched:
    """A tensor on its way to the host; calling this object waits for it and returns it."""

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


def true_positions(mask: Tensor) -> Tensor:
    """Return ``[K]`` int64: where the flattened ``mask`` is true. Of a mask on a GPU, this waits for the GPU."""
    return mask.flatten().nonzero().squeeze(1)
