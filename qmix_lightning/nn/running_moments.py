"""Keep a running mean and variance that all ranks agree on, for normalising observations, rewards and values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["RunningMoments"]


class RunningMoments(nn.Module):
    """Running mean and variance of everything seen, or of the recent past, by Chan et al.'s parallel update (1979).

    Before anything was seen the mean is 0 and the deviation 1. Kept in float64 whatever the module's precision: a
    count in half precision stops at 2048.

    Args:
        shape: of one item.
        horizon: forget exponentially, as if this many updates were remembered; ``None`` remembers all.
    """

    count: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self, *shape: int, horizon: int | None = None) -> None:
        super().__init__()
        self.horizon = horizon
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(shape, dtype=torch.float64))  # sum of squared deviations

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RunningMoments:
        def move_only(tensor: Tensor) -> Tensor:
            return tensor.to(fn(tensor).device)

        return super()._apply(move_only, recurse)

    @torch.no_grad()
    def update(self, items: Tensor, mask: Tensor, all_reduce: Callable[[Tensor], Tensor]) -> None:
        """Add ``items [..., *shape]`` where ``mask [...]`` is true, joined over all ranks."""
        # Sums are taken around the mean so far, the same on all ranks: squares of large numbers would drown a small
        # deviation. All items are summed, as zeros where they do not count: how many do is not known without asking
        # a GPU, which would be waiting for it.
        zero = self.mean.new_zeros(())
        counted = mask.reshape(*mask.shape, *(1,) * self.mean.dim())
        flat = torch.where(counted, items.to(zero.dtype) - self.mean, zero).flatten(0, mask.dim() - 1)  # [M, *shape]
        sums = torch.cat([mask.sum().to(flat.dtype)[None], flat.sum(0).flatten(), flat.square().sum(0).flatten()])
        count, total, squares = all_reduce(sums).split([1, self.mean.numel(), self.mean.numel()])
        count = count.squeeze(0)
        seen = count.clamp(min=1.0)  # a batch may have nothing that counts
        difference = (total / seen).view_as(self.mean)
        deviations = (squares / seen).view_as(self.mean).sub(difference.square()).clamp_(min=0.0) * count
        if self.horizon is not None:
            kept = 1.0 - 1.0 / self.horizon
            self.count.mul_(kept)
            self.squares.mul_(kept)
        joined = self.count + count
        share = count / joined.clamp(min=1e-12)  # nothing seen yet, and nothing now: stays as it is
        self.squares += deviations + difference.square() * self.count * share
        self.mean += difference * share
        self.count.copy_(joined)

    def deviation(self, like: Tensor) -> Tensor:
        """Return the standard deviation in the dtype of ``like``, at least 1e-4; 1 before anything was seen."""
        variance = torch.where(self.count > 0, self.squares / self.count.clamp(min=1e-12), 1.0)
        return variance.sqrt().clamp(min=1e-4).to(like.dtype)

    def normalize(self, values: Tensor) -> Tensor:
        """Return ``(values - mean) / deviation``."""
        return (values - self.mean.to(values.dtype)) / self.deviation(values)

    def restore(self, values: Tensor) -> Tensor:
        """Return ``values * deviation + mean``, the inverse of :meth:`normalize`."""
        return values * self.deviation(values) + self.mean.to(values.dtype)

    def extra_repr(self) -> str:
        settings: dict[str, Any] = {"shape": tuple(self.mean.shape), "horizon": self.horizon}
        return ", ".join(f"{key}={value}" for key, value in settings.items())
