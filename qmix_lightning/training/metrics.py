"""Compute metrics of evaluation episodes over all ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from qmix_lightning.training.intervals import mean_of_sums

__all__ = ["MeanWithInterval"]


class MeanWithInterval(Metric):
    """Mean and half width of its 95 % interval (Student's t) over all ranks, however many values each one holds."""

    full_state_update = False
    count: Tensor
    total: Tensor
    squares: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("count", "total", "squares"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: Sequence[float] | Tensor) -> None:
        """Add values, any number of them, none included."""
        values = torch.as_tensor(values, dtype=torch.float64, device=self.count.device)
        self.count += values.numel()
        self.total += values.sum()
        self.squares += values.square().sum()

    def compute(self) -> tuple[float, float, int]:
        """Return mean, half width and number of values; ``nan`` without any."""
        return mean_of_sums(int(self.count), float(self.total), float(self.squares))
