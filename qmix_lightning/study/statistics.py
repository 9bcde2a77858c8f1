"""Sum up the scores of several runs on several tasks: pure functions of numbers.

Definitions are those of Agarwal et al. 2021 (arXiv 2108.13264) and of its library, rliable. Scores are a list with one
array for each task, ``scores[m]`` of shape [N_m] with one number a run; tasks may have different numbers of runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "bootstrap_band",
    "bootstrap_interval",
    "common_grid",
    "improvement_interval",
    "interquartile_mean",
    "normalized",
    "optimality_gap",
    "percentile_interval",
    "performance_profile",
    "probability_of_improvement",
    "profile_band",
]

Scores = Sequence[ArrayLike]
Floats = NDArray[np.float64]

_RESAMPLES = 10_000
_BAND_RESAMPLES = 2_000  # of a whole curve, or of two algorithms: each draw costs more


def interquartile_mean(values: ArrayLike) -> Floats:
    """Return the mean of the middle half along the last axis.

    A quarter of the values, rounded down, is cut off at each end: of three values none, of five one at each end.
    """
    ordered = np.sort(np.asarray(values, np.float64), axis=-1)
    cut = ordered.shape[-1] // 4
    return ordered[..., cut : ordered.shape[-1] - cut].mean(-1)


def bootstrap_interval(
    scores: Scores,
    statistic: Callable[[Floats], Floats] = interquartile_mean,
    *,
    confidence: float = 0.95,
    resamples: int = _RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the percentile interval of a statistic over all runs of all tasks, by the stratified bootstrap.

    Runs are drawn again, with replacement, within each task, so that every sample has as many of each task as there
    are. Equal numbers give equal intervals: the draws are a function of ``seed``.

    Args:
        scores: one array a task.
        statistic: from [R, sum of N_m] to [R], one for each sample.
        confidence: share of the samples inside.
        resamples: number of samples R.
        seed: of the draws.
    """
    low, high = percentile_interval(statistic(_resampled(scores, resamples, seed)), confidence)
    return float(low), float(high)


def _resampled(scores: Scores, resamples: int, seed: int) -> Floats:
    """Return [R, sum of N_m]: runs drawn with replacement within each task."""
    rng = np.random.default_rng(seed)
    arrays = [np.asarray(task, np.float64) for task in scores]
    drawn = [task[rng.integers(len(task), size=(resamples, len(task)))] for task in arrays]
    return np.concatenate(drawn, axis=1)


def percentile_interval(samples: ArrayLike, confidence: float = 0.95) -> Floats:
    """Return the ends [2, ...] between which the given share of the samples [R, ...] lies."""
    outside = (1 - confidence) / 2
    return np.quantile(np.asarray(samples, np.float64), [outside, 1 - outside], axis=0)


def bootstrap_band(values: ArrayLike) -> Floats:
    """Return the 95 % interval [2, P] of the interquartile mean at each point of curves [N, P].

    A draw takes whole curves, so that the points of a band belong together.
    """
    curves = np.asarray(values, np.float64)
    drawn = np.random.default_rng(0).integers(len(curves), size=(_BAND_RESAMPLES, len(curves)))
    means = [interquartile_mean(column[drawn]) for column in curves.T]  # a point at a time: R x N numbers in memory
    return percentile_interval(np.stack(means, axis=1))


def performance_profile(scores: Scores, thresholds: ArrayLike) -> Floats:
    """Return the share of runs, over all tasks, whose score is above each threshold (their equation 2)."""
    every = np.concatenate([np.asarray(task, np.float64) for task in scores])
    return (every[:, None] > np.asarray(thresholds, np.float64)[None, :]).mean(0)


def profile_band(scores: Scores, thresholds: ArrayLike) -> Floats:
    """Return the 95 % interval [2, K] of a performance profile, by the stratified bootstrap."""
    drawn = _resampled(scores, _BAND_RESAMPLES, seed=0)
    shares = [(drawn > threshold).mean(1) for threshold in np.asarray(thresholds, np.float64)]
    return percentile_interval(np.stack(shares, axis=1))


def optimality_gap(values: ArrayLike, best: float = 1.0) -> Floats:
    """Return by how much scores fall short of ``best`` on average, along the last axis; more than it counts as it."""
    return best - np.minimum(np.asarray(values, np.float64), best).mean(-1)


def improvement_interval(scores: Scores, others: Scores) -> tuple[float, float]:
    """Return the 95 % interval of :func:`probability_of_improvement`, the runs of both drawn within each task."""
    rng = np.random.default_rng(0)
    total = np.zeros(_BAND_RESAMPLES)
    for one, other in zip(scores, others, strict=True):
        wins = _wins(one, other)
        of_x, of_y = (rng.multinomial(n, np.full(n, 1 / n), size=_BAND_RESAMPLES) / n for n in wins.shape)
        total += np.einsum("rn,nm,rm->r", of_x, wins, of_y)
    low, high = percentile_interval(total / len(scores))
    return float(low), float(high)


def probability_of_improvement(scores: Scores, others: Scores) -> float:
    """Return how likely a run of the first algorithm is above one of the second, as the mean over tasks.

    For each task it is the Mann-Whitney statistic: the share of pairs in which the first is higher, ties counting half.
    """
    return float(np.mean([_wins(one, other).mean() for one, other in zip(scores, others, strict=True)]))


def _wins(scores: ArrayLike, others: ArrayLike) -> Floats:
    """Return [N, M]: 1 where a run is above one of the others, a half where they are equal."""
    x, y = np.asarray(scores, np.float64)[:, None], np.asarray(others, np.float64)[None, :]
    return (x > y) + 0.5 * (x == y)


def normalized(values: ArrayLike, low: float, high: float) -> Floats:
    """Return ``values`` on the scale where ``low`` is 0 and ``high`` is 1."""
    return (np.asarray(values, np.float64) - low) / (high - low)


def common_grid(curves: Sequence[tuple[ArrayLike, ArrayLike]], points: int = 50) -> tuple[Floats, Floats]:
    """Interpolate curves of several runs linearly to one grid, where all of them have been evaluated.

    Args:
        curves: environment steps, ascending, and values of each run.
        points: of the grid, evenly spaced from the latest first evaluation to the earliest last one.

    Returns:
        The grid [P] and the values [N, P]; P is one if the runs share one place only, and 0 if they share none.
    """
    sets = [(np.asarray(steps, np.float64), np.asarray(values, np.float64)) for steps, values in curves]
    first, last = max(steps[0] for steps, _ in sets), min(steps[-1] for steps, _ in sets)
    grid = np.linspace(first, last, points) if first < last else np.array([first] if first == last else [])
    return grid, np.stack([np.interp(grid, steps, values) for steps, values in sets])
