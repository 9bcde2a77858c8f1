"""Interquartile mean, bootstrap, profiles, probability of improvement and the common grid, against numbers by hand."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from qmix_lightning.study.statistics import (
    bootstrap_interval,
    common_grid,
    interquartile_mean,
    normalized,
    performance_profile,
    probability_of_improvement,
)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3.0], 3.0),
        ([1.0, 2.0, 6.0], 3.0),  # a quarter of three is less than one: the mean
        ([0.0, 1.0, 2.0, 100.0], 1.5),
        ([100.0, 0.0, 1.0, 2.0, 3.0], 2.0),  # one at each end
        ([0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 90.0, 90.0], 2.5),  # two at each end
    ],
)
def test_the_interquartile_mean_is_the_mean_of_the_middle_half(values: list[float], expected: float):
    assert interquartile_mean(values) == pytest.approx(expected)


def test_the_interquartile_mean_is_taken_along_the_last_axis():
    assert interquartile_mean([[0, 1, 2, 100], [8, 8, 8, 8]]).tolist() == [1.5, 8.0]


def test_the_interval_is_that_of_all_samples_there_are():
    """Two runs: samples (a, a), (a, b), (b, a), (b, b), so a quarter of the means is a and a quarter b."""
    assert bootstrap_interval([[0.0, 1.0]], confidence=0.6, resamples=40_000) == (0.0, 1.0)
    assert bootstrap_interval([[0.0, 1.0]], confidence=0.4, resamples=40_000) == (0.5, 0.5)


def test_the_bootstrap_draws_within_each_task():
    """Tasks of one run each leave nothing to draw; pooled, the interval would go from 0 to 100."""
    assert bootstrap_interval([[0.0], [100.0]]) == (50.0, 50.0)


def test_the_interval_agrees_with_every_sample_counted():
    tasks = [[1.0, 4.0], [10.0, 12.0, 20.0]]
    samples = np.array(
        [
            float(interquartile_mean([*one, *other]))
            for one in product(tasks[0], repeat=2)
            for other in product(tasks[1], repeat=3)
        ]
    )
    for share, end in zip((0.025, 0.975), bootstrap_interval(tasks, resamples=200_000), strict=True):
        assert np.isclose(samples, end).any()
        assert (samples < end - 1e-9).mean() <= share <= (samples < end + 1e-9).mean()


def test_the_interval_is_the_same_each_time():
    scores = [[1.0, 2.0, 5.0], [0.0, 3.0]]
    assert bootstrap_interval(scores) == bootstrap_interval(scores)
    assert bootstrap_interval(scores, seed=1, resamples=50) != bootstrap_interval(scores, seed=2, resamples=50)


def test_a_profile_is_the_share_of_runs_above():
    assert performance_profile([[0.0, 0.5], [1.0]], [-1, 0.0, 0.5, 0.9, 1.0]).tolist() == pytest.approx(
        [1, 2 / 3, 1 / 3, 1 / 3, 0]
    )


def test_the_probability_of_improvement_counts_pairs():
    """First task: of 4 pairs 2 > 1, 2 = 2, 3 > 1, 3 > 2, which is 3.5 of 4. Second: never."""
    assert probability_of_improvement([[2, 3]], [[1, 2]]) == pytest.approx(3.5 / 4)
    assert probability_of_improvement([[2, 3], [0.0]], [[1, 2], [1.0]]) == pytest.approx(3.5 / 8)


def test_normalized_puts_the_ends_at_0_and_1():
    assert normalized([4.75, 8, 1.5], 4.75, 8).tolist() == [0, 1, -1]


def test_curves_meet_where_all_of_them_are():
    grid, values = common_grid([([0, 10], [0, 1]), ([5, 15], [2, 4])], points=3)
    assert grid.tolist() == [5, 7.5, 10]
    assert values.tolist() == [[0.5, 0.75, 1.0], [2, 2.5, 3]]


def test_curves_with_one_place_or_none_in_common():
    grid, values = common_grid([([10], [3]), ([10], [5])])
    assert (grid.tolist(), values.tolist()) == ([10], [[3], [5]])
    grid, values = common_grid([([0, 1], [0, 0]), ([2, 3], [0, 0])])
    assert (len(grid), values.shape) == (0, (2, 0))


def test_an_interval_of_equal_values_is_a_point():
    low, high = bootstrap_interval([[7.0, 7.0, 7.0]])
    assert (low, high) == (7.0, 7.0)
    assert not math.isnan(low)
