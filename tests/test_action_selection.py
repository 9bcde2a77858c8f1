import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qmix_lightning.action_selection import _nth_legal, epsilon_greedy, greedy_actions

BELOW_ONE = float(np.nextafter(np.float32(1), np.float32(0)))


VALUES = st.one_of(st.floats(width=32, allow_nan=False, allow_infinity=False), st.just(0.0))
GARBAGE = st.sampled_from([math.nan, math.inf, -math.inf, 1e38, 0.0])
DRAW = st.one_of(st.sampled_from([0.0, 0.5, BELOW_ONE]), st.floats(0, 1, exclude_max=True, width=32))


@st.composite
def choices(draw):
    n = draw(st.integers(1, 40))
    legal = draw(st.lists(st.booleans(), min_size=n, max_size=n).filter(any))
    q = [draw(VALUES if ok else GARBAGE) for ok in legal]
    return q, legal, draw(st.sampled_from([0.0, 0.05, 0.5, 1.0])), draw(DRAW), draw(DRAW)


@settings(max_examples=150, deadline=None)
@given(choices())
def test_an_illegal_action_is_never_taken(case):
    q, legal, epsilon, explore, which = case
    q, avail = torch.tensor(q), torch.tensor(legal)
    action = int(epsilon_greedy(q, avail, epsilon, torch.tensor([explore, which])))
    assert legal[action]
    best = max(float(v) for v, ok in zip(q, legal, strict=True) if ok)
    if explore >= np.float32(epsilon):
        assert float(q[action]) == best
        assert action == min(i for i, ok in enumerate(legal) if ok and float(q[i]) == best)
    else:
        ranked = [i for i, ok in enumerate(legal) if ok]
        assert action == ranked[min(int(np.float32(which) * np.float32(len(ranked))), len(ranked) - 1)]


def test_exploring_is_uniform_over_legal_actions():
    legal = torch.tensor([False, True, True, False, True, False])
    n = 60_000
    draws = torch.rand(n, 2, generator=torch.Generator().manual_seed(1))
    actions = epsilon_greedy(torch.zeros(n, 6), legal.expand(n, 6), 1.0, draws)
    counts = torch.bincount(actions, minlength=6)
    assert counts[~legal].sum() == 0
    chi_square = ((counts[legal] - n / 3) ** 2 / (n / 3)).sum()
    assert chi_square < 13.8  # 99.9 % quantile with 2 degrees of freedom


def test_epsilon_is_the_share_of_random_actions():
    n = 40_000
    q = torch.tensor([0.0, 0.0, 1.0, 0.0]).expand(n, 4)
    draws = torch.rand(n, 2, generator=torch.Generator().manual_seed(2))
    actions = epsilon_greedy(q, torch.ones(n, 4, dtype=torch.bool), 0.4, draws)
    # 0.4 explore, of these 3 in 4 take another action: 0.3, standard deviation 0.0023
    assert float((actions != 2).float().mean()) == pytest.approx(0.3, abs=0.01)


def test_each_agent_has_its_own_draw():
    q = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
    draws = torch.tensor([[[0.05, 0.0], [0.95, 0.0]]])
    assert epsilon_greedy(q, torch.ones(1, 2, 2, dtype=torch.bool), 0.1, draws).tolist() == [[0, 1]]


def test_epsilon_zero_is_greedy_whatever_is_drawn():
    g = torch.Generator().manual_seed(3)
    q, avail = torch.randn(500, 5, generator=g), torch.rand(500, 5, generator=g) > 0.5
    avail[:, 4] = True
    draws = torch.zeros(500, 2)
    assert torch.equal(epsilon_greedy(q, avail, 0.0, draws), greedy_actions(q, avail))


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0)])
def test_the_layout_in_memory_does_not_matter(order):
    """Among few explorers, and for values, masks and draws that are views in another order."""
    g = torch.Generator().manual_seed(4)

    def laid_out(x):
        back = [order.index(i) for i in range(3)]
        return x.permute(order).contiguous().permute(back)

    q, avail = torch.randn(4, 3, 6, generator=g), torch.rand(4, 3, 6, generator=g) < 0.6
    avail[..., 2] = True
    draws = torch.rand(4, 3, 2, generator=g)
    taken = epsilon_greedy(laid_out(q), laid_out(avail), 0.4, laid_out(draws))
    explored = 0
    for b, n in np.ndindex(4, 3):
        legal = [a for a in range(6) if avail[b, n, a]]
        explores = float(draws[b, n, 0]) < 0.4
        explored += explores
        expected = legal[int(draws[b, n, 1] * len(legal))] if explores else max(legal, key=lambda a: float(q[b, n, a]))
        assert int(taken[b, n]) == expected
    assert 0 < explored < 12


def test_tensors_and_arrays_explore_alike():
    """The same lines serve numpy, on a CPU, and torch, on other devices."""
    g = torch.Generator().manual_seed(5)
    avail, place = torch.rand(2000, 37, generator=g) < 0.3, torch.rand(2000, generator=g)
    avail[:, 36] = True
    place[:5] = BELOW_ONE
    by_torch, by_numpy = _nth_legal(avail, place), _nth_legal(avail.numpy(), place.numpy())
    assert by_torch.tolist() == by_numpy.tolist()
    assert avail.gather(1, by_torch[:, None]).all()
