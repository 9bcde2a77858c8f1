"""Moving tensors to a device without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Fetched", "copy_values", "pinned", "sent"]


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


@torch.no_grad()
def copy_values(to: Sequence[Tensor], of: Sequence[Tensor]) -> None:
    """Write the values of each of ``of`` into its place in ``to``; between devices as one copy for each dtype."""
    by_kind: dict[tuple[torch.device, torch.device, torch.dtype], list[tuple[Tensor, Tensor]]] = {}
    for mine, theirs in zip(to, of, strict=True):
        by_kind.setdefault((mine.device, theirs.device, theirs.dtype), []).append((mine, theirs))
    for (here, there, _), pairs in by_kind.items():
        if here == there:
            for mine, theirs in pairs:
                mine.copy_(theirs)
            continue
        joined = torch.cat([theirs.detach().flatten() for _, theirs in pairs]).to(here)
        for (mine, theirs), part in zip(pairs, joined.split([t.numel() for _, t in pairs]), strict=True):
            mine.copy_(part.view(theirs.shape))


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
