"""Join the evaluations of several runs into one curve with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qmix_lightning.study import statistics

__all__ = ["Band", "band_of"]


@dataclass(frozen=True)
class Band:
    """A curve: the interquartile mean over runs and its 95 % interval, on a grid of steps or of seconds."""

    x: list[float]
    iqm: list[float]
    low: list[float]
    high: list[float]
    runs: int


def band_of(runs: Sequence[Mapping[str, Sequence[float | None]]], axis: str, metric: str) -> Band | None:
    """Return the curve of a metric over an axis; ``None`` where the runs share no evaluation.

    Args:
        runs: the evaluations of each as columns, ``None`` where a number is not known.
        axis: column of environment steps or of seconds.
        metric: column that is drawn over it.
    """
    curves = []
    for columns in runs:
        pairs = zip(columns.get(axis, []), columns.get(metric, []), strict=False)
        known = [(x, value) for x, value in pairs if x is not None and value is not None]
        if not known:
            return None
        curves.append(tuple(zip(*known, strict=True)))
    if not curves:
        return None
    grid, values = statistics.common_grid(curves)
    if not len(grid):
        return None
    low, high = statistics.bootstrap_band(values).tolist()
    return Band(grid.tolist(), statistics.interquartile_mean(values.T).tolist(), low, high, len(values))
