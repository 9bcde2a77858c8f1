import itertools
import math
import random
import statistics

import pytest
import torch

from qmix_lightning.training.intervals import half_width_95, mean_with_interval, student_t_975
from qmix_lightning.training.metrics import MeanWithInterval

# 97.5 % quantiles of Student's t from printed tables.
TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 7: 2.365, 10: 2.228, 20: 2.086, 30: 2.042, 100: 1.984}


@pytest.mark.parametrize(("degrees", "quantile"), TABLE.items())
def test_students_t_equals_the_table(degrees, quantile):
    exact = 0.001 if degrees <= 2 or degrees >= 10 else 0.003 * quantile
    assert student_t_975(degrees) == pytest.approx(quantile, abs=exact)


def test_students_t_falls_to_the_normal_quantile():
    values = [student_t_975(n) for n in range(1, 400)]
    assert all(a > b for a, b in itertools.pairwise(values))
    assert student_t_975(10**9) == pytest.approx(1.959964, abs=1e-6)
    assert student_t_975(0) == math.inf


def test_half_width():
    # 5 values of variance 10: 2.776 * sqrt(10 / 5)
    assert half_width_95(5, 10.0) == pytest.approx(2.776 * math.sqrt(2), rel=0.003)
    assert math.isnan(half_width_95(1, 0.0))
    assert half_width_95(3, -1e-18) == 0.0


def measured(*parts):
    metric = MeanWithInterval()
    for part in parts:
        metric.update(part)
    return metric.compute()


@pytest.mark.parametrize("offset", [0.0, -20.0, 1e4])
def test_equals_the_statistics_module(offset):
    rng = random.Random(5)
    values = [offset + rng.gauss(0, 3) for _ in range(37)]
    mean, half_width, count = measured(values[:10], [], torch.tensor(values[10:], dtype=torch.float64))
    assert count == 37
    assert mean == pytest.approx(statistics.fmean(values), rel=1e-12)
    expected = student_t_975(36) * statistics.stdev(values) / math.sqrt(37)
    assert half_width == pytest.approx(expected, rel=1e-6)
    assert mean_with_interval(values) == pytest.approx((mean, half_width, count))


def test_without_values_and_with_one():
    mean, half_width, count = measured([])
    assert math.isnan(mean)
    assert math.isnan(half_width)
    assert count == 0
    mean, half_width, count = measured([7.0])
    assert (mean, count) == (7.0, 1)
    assert math.isnan(half_width)


def test_equal_values_have_no_spread():
    assert measured([0.1] * 33) == (pytest.approx(0.1), 0.0, 33)


def test_two_ranks_with_unequal_counts_are_one_sample():
    values = [random.Random(6).gauss(1, 2) for _ in range(11)]
    ranks = [MeanWithInterval(), MeanWithInterval(), MeanWithInterval()]
    ranks[0].update(values[:3])
    ranks[1].update(values[3:])
    ranks[2].update([])  # a rank without episodes of its own
    joined = MeanWithInterval()
    for name, reduce in joined._reductions.items():
        setattr(joined, name, reduce(torch.stack([getattr(rank, name) for rank in ranks])))
    joined._update_count = 1
    assert joined.compute() == pytest.approx(measured(values))


def test_reset_forgets():
    metric = MeanWithInterval()
    metric.update([1.0, 5.0])
    assert metric.compute()[0] == 3.0
    metric.reset()
    metric.update([10.0])
    assert metric.compute()[0] == 10.0


def test_sums_are_double_precision():
    # In float32 the squares of returns around 1e4 would lose their spread.
    mean, half_width, _ = measured([1e4, 1e4 + 0.1] * 50)
    assert mean == pytest.approx(1e4 + 0.05, rel=1e-12)
    assert half_width == pytest.approx(student_t_975(99) * math.sqrt(0.05**2 / 99), rel=1e-4)
