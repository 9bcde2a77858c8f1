"""Running mean and deviation against numpy on everything that was seen."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qmix_lightning.nn.running_moments import RunningMoments


def alone(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def pieces(seed: int, count: int, *shape: int, mean: float = 3.0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches ``[4, 5, *shape]`` with masks; what is masked is NaN."""
    g = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        items = torch.randn(4, 5, *shape, generator=g, dtype=torch.float64) * 2.0 + mean
        mask = torch.rand(4, 5, generator=g) > 0.4
        items[~mask] = float("nan")
        made.append((items, mask))
    return made


def joined(batches) -> np.ndarray:
    return np.concatenate([items[mask].numpy() for items, mask in batches])


def check(moments: RunningMoments, seen: np.ndarray, tolerance: float = 1e-9) -> None:
    assert moments.mean.numpy() == pytest.approx(seen.mean(0), rel=tolerance)
    assert moments.deviation(moments.mean).numpy() == pytest.approx(seen.std(0), rel=tolerance)
    assert moments.count.item() == pytest.approx(len(seen))


@pytest.mark.parametrize("shape", [(), (3,)])
def test_like_numpy_on_everything_seen(shape):
    batches = pieces(0, 6, *shape)
    moments = RunningMoments(*shape)
    for number, (items, mask) in enumerate(batches, 1):
        moments.update(items, mask, alone)
        check(moments, joined(batches[:number]))


@given(st.integers(0, 1000), st.lists(st.integers(1, 4), min_size=1, max_size=4), st.sampled_from([0.0, 1e3, -1e6]))
@settings(max_examples=20, deadline=None)
def test_how_the_data_is_cut_does_not_matter(seed, cuts, mean):
    batches = pieces(seed, sum(cuts), 2, mean=mean)
    moments = RunningMoments(2)
    start = 0
    for cut in cuts:
        part = batches[start : start + cut]
        moments.update(torch.cat([i for i, _ in part]), torch.cat([m for _, m in part]), alone)
        start += cut
    check(moments, joined(batches), tolerance=1e-3 if mean == -1e6 else 1e-7)  # the first batch knows no mean yet


def test_several_ranks_have_the_moments_of_the_joined_data():
    """Each rank sees half of every batch; the sums are added as a collective would."""
    ranks = [RunningMoments(2), RunningMoments(2)]
    batches = pieces(1, 4, 2)
    for items, mask in batches:
        halves = [(items[:2], mask[:2]), (items[2:], mask[2:])]
        local: list[torch.Tensor] = []
        for moments, half in zip(ranks, halves, strict=True):
            copy.deepcopy(moments).update(*half, lambda sums, local=local: local.append(sums.clone()) or sums)
        for moments, half in zip(ranks, halves, strict=True):
            moments.update(*half, lambda sums, local=local: sum(local))
    for moments in ranks:
        check(moments, joined(batches))


def test_before_anything_was_seen_nothing_changes():
    moments = RunningMoments(2)
    values = torch.randn(5, 2)
    assert torch.equal(moments.normalize(values), values)
    assert torch.equal(moments.restore(values), values)


@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("horizon", [None, 10])
def test_a_batch_in_which_nothing_counts(before, horizon):
    moments = RunningMoments(2, horizon=horizon)
    for items, mask in pieces(2, before, 2):
        moments.update(items, mask, alone)
    mean, deviation = moments.mean.clone(), moments.deviation(moments.mean)
    moments.update(torch.full((3, 2), float("nan")), torch.zeros(3, dtype=torch.bool), alone)
    assert torch.equal(moments.mean, mean)
    torch.testing.assert_close(moments.deviation(mean), deviation)
    assert moments.normalize(torch.ones(2)).isfinite().all()


def test_a_horizon_forgets_exponentially():
    """Weights of batches are ``(1 - 1/horizon)^age``: recomputed as a weighted mean and deviation."""
    horizon, batches = 4, pieces(3, 7)
    moments = RunningMoments(horizon=horizon)
    for items, mask in batches:
        moments.update(items, mask, alone)
    values = joined(batches)
    ages = np.concatenate([[len(batches) - 1 - k] * int(mask.sum()) for k, (_, mask) in enumerate(batches)])
    weights = (1 - 1 / horizon) ** ages
    mean = np.average(values, weights=weights)
    assert moments.mean.item() == pytest.approx(mean)
    assert moments.deviation(moments.mean).item() == pytest.approx(
        np.sqrt(np.average((values - mean) ** 2, weights=weights))
    )
    assert moments.count.item() == pytest.approx(weights.sum())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_values_keep_their_precision_and_the_statistics_theirs(dtype):
    moments = RunningMoments(2).to(dtype)
    for items, mask in pieces(4, 3, 2):
        moments.update(items.to(dtype), mask, alone)
    assert {buffer.dtype for buffer in moments.buffers()} == {torch.float64}
    values = torch.randn(6, 2).to(dtype)
    assert moments.normalize(values).dtype == dtype
    back = moments.restore(moments.normalize(values))
    torch.testing.assert_close(back, values, rtol=0.02, atol=0.05 if dtype.itemsize == 2 else 1e-5)


def test_a_count_beyond_half_precision():
    moments = RunningMoments().half()
    for _ in range(300):
        moments.update(torch.ones(100), torch.ones(100, dtype=torch.bool), alone)
    assert moments.count.item() == 30_000


def test_what_never_changes_is_not_divided_by_zero():
    moments = RunningMoments(2)
    moments.update(torch.full((9, 2), 5.0), torch.ones(9, dtype=torch.bool), alone)
    assert moments.normalize(torch.full((2,), 5.0)).tolist() == [0.0, 0.0]
    assert moments.deviation(moments.mean).tolist() == [1e-4, 1e-4]


def test_saved_and_loaded():
    moments, other = RunningMoments(2, horizon=7), RunningMoments(2, horizon=7)
    batches = pieces(5, 4, 2)
    for items, mask in batches[:2]:
        moments.update(items, mask, alone)
    other.load_state_dict(moments.state_dict())
    for items, mask in batches[2:]:
        moments.update(items, mask, alone)
        other.update(items, mask, alone)
    for name, buffer in moments.named_buffers():
        assert torch.equal(buffer, dict(other.named_buffers())[name]), name
