"""Compute means over evaluation episodes, and the interval that is printed with them.

Without torchmetrics: it imports SciPy and Matplotlib, which takes longer than most evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

__all__ = ["half_width_95", "mean_name", "mean_of_sums", "mean_with_interval", "student_t_975"]


def student_t_975(degrees: int) -> float:
    """Return the 97.5 % quantile of Student's t for so many degrees of freedom.

    It is exact for 1 and 2 degrees, otherwise by the Cornish-Fisher series (Abramowitz & Stegun 26.7.5), which is
    within 0.3 % from 3 degrees on.
    """
    if degrees < 1:
        return math.inf
    if degrees == 1:
        return math.tan(math.pi * 0.475)
    if degrees == 2:
        return 0.95 * math.sqrt(2.0 / (1.0 - 0.95**2))
    z, v = 1.959963984540054, float(degrees)
    g1 = (z**3 + z) / 4
    g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    g4 = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
    return z + g1 / v + g2 / v**2 + g3 / v**3 + g4 / v**4


def half_width_95(count: int, variance: float) -> float:
    """Return half the width of the 95 % interval of a mean; ``nan`` for fewer than two values."""
    if count < 2:
        return math.nan
    return student_t_975(count - 1) * math.sqrt(max(variance, 0.0) / count)


def mean_name(metric: str) -> str:
    """Return what the mean over episodes of a metric is called: the share of those ``won`` is the win rate."""
    return "win_rate" if metric == "won" else f"{metric}_mean"


def mean_of_sums(count: int, total: float, squares: float) -> tuple[float, float, int]:
    """Return mean, half width and number of values, by their sum and that of their squares; ``nan`` without any."""
    if count == 0:
        return math.nan, math.nan, 0
    mean = total / count
    variance = (squares - count * mean * mean) / (count - 1) if count > 1 else 0.0
    # What is left of equal values by rounding is not spread.
    variance = 0.0 if variance < 1e-12 * max(1.0, mean * mean) else variance
    return mean, half_width_95(count, variance), count


def mean_with_interval(values: Sequence[float] | torch.Tensor) -> tuple[float, float, int]:
    """Return the mean of values, the half width of its 95 % interval (Student's t), and how many there are."""
    values = torch.as_tensor(values, dtype=torch.float64)
    return mean_of_sums(values.numel(), float(values.sum()), float(values.square().sum()))
