"""The floored softmax, what is drawn from it, and its gradients."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from qmix_lightning.agents.stochastic_policy import floored_log_policy, sample_actions
from support.garbage import INF, NAN
from support.on_policy_learners import make_coma
from support.small_policies import A, N


@pytest.mark.parametrize("epsilon", [0.0, 0.2, 1.0])
def test_the_floored_softmax(epsilon: float):
    g = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(50, N, A, generator=g, dtype=torch.float64)
    legal = torch.rand(50, N, A, generator=g) > 0.4
    legal[..., 0] = True
    given = torch.where(legal, logits, NAN)
    pi = floored_log_policy(given, legal, torch.tensor(epsilon)).exp()
    for i, n in itertools.product(range(50), range(N)):
        own = [a for a in range(A) if legal[i, n, a]]
        total = sum(math.exp(logits[i, n, a]) for a in own)
        for a in range(A):
            soft = math.exp(logits[i, n, a]) / total
            expected = (1 - epsilon) * soft + epsilon / len(own) if a in own else 0.0
            assert pi[i, n, a].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("epsilon", [0.0, 0.2, 1.0])
def test_the_floored_softmax_masked_after_it(epsilon: float):
    """PyMARL's way: softmax and floor over all actions, illegal ones struck out, the rest divided by its sum."""
    g = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(50, N, A, generator=g, dtype=torch.float64)
    legal = torch.rand(50, N, A, generator=g) > 0.4
    legal[..., 0] = True
    pi = floored_log_policy(logits, legal, torch.tensor(epsilon), mask_before_softmax=False).exp()
    expected = torch.where(legal, (1 - epsilon) * torch.softmax(logits, -1) + epsilon / A, 0.0)
    torch.testing.assert_close(pi, expected / expected.sum(-1, keepdim=True), rtol=1e-6, atol=1e-12)
    assert (pi[~legal] == 0).all()
    before = floored_log_policy(logits, legal, torch.tensor(epsilon)).exp()
    assert torch.allclose(pi, before) == (epsilon in (0.0, 1.0))


@pytest.mark.parametrize("epsilon", [0.0, 1e-8, 0.5, 1.0])
def test_gradients_stay_finite_where_the_softmax_leaves_nothing_to_legal_actions(epsilon: float):
    logits = torch.tensor([[-1e4, -1e4, 0.0], [0.0, 1e4, 1e4], [1e4, 0.0, 0.0]], requires_grad=True)
    legal = torch.tensor([[True, True, False], [True, False, False], [True, True, False]])
    log_pi = floored_log_policy(logits, legal, torch.tensor(epsilon), mask_before_softmax=False)
    assert log_pi[0, :2].exp().tolist() == pytest.approx([0.5, 0.5], rel=1e-3)
    assert log_pi[1, 0] == 0
    torch.where(legal, log_pi, 0.0).sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("epsilon", [0.0, 1e-8, 0.5, 1.0])
def test_gradients_stay_finite_where_probabilities_vanish(epsilon: float):
    logits = torch.tensor([[1e4, -1e4, 0.0, NAN], [0.0, INF, 0.0, 0.0]], requires_grad=True)
    legal = torch.tensor([[True, True, True, False], [True, False, False, False]])
    log_pi = floored_log_policy(logits, legal, torch.tensor(epsilon))
    torch.where(legal, log_pi, 0.0)[0, 1].backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    if epsilon == 0.0:
        assert logits.grad[0].tolist() == [-1.0, 1.0, 0.0, 0.0]
    else:  # the floor is what is left of it: nothing to learn
        assert logits.grad[0].tolist() == [0.0] * 4


def test_samples_have_the_policys_frequencies():
    """With evenly spaced draws the counts are exact, up to one at each edge."""
    p = torch.tensor([[0.0, 0.25, 0.0, 0.75], [0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 1.0, 0.0], [0.5, 0.5, 0.0, 0.0]])
    k = 1000
    draws = ((torch.arange(k) + 0.5) / k)[:, None].expand(k, 4)
    counts = torch.nn.functional.one_hot(sample_actions(p.expand(k, 4, 4), draws), 4).sum(0)
    assert ((counts - k * p).abs() <= 1).all()
    assert (counts[p == 0] == 0).all()


def test_the_largest_draw_takes_a_legal_action():
    """Sums of float32 probabilities end a little off 1, and trailing actions may be illegal."""
    g = torch.Generator().manual_seed(2)
    p = torch.rand(20000, 7, generator=g) * (torch.rand(20000, 7, generator=g) > 0.5)
    p = p / p.sum(-1, keepdim=True).clamp(min=1e-9) * (1 + 1e-6 * torch.randn(20000, 1, generator=g))
    p = p[p.sum(-1) > 0.5]
    for draw in (0.0, 1 - 2.0**-24):
        chosen = sample_actions(p, torch.full((len(p),), draw))
        assert (p.gather(-1, chosen[:, None]) > 0).all()


def test_it_samples_in_training_and_is_greedy_in_evaluation():
    policy = make_coma(dtype=torch.float32, mask_before_softmax=True).policy
    q = torch.tensor([[[0.0, 1.0, 5.0, 0.9]] * N])
    legal = torch.tensor([[[True, True, False, True]] * N])
    assert policy.select(q, legal, 1.0, None).tolist() == [[1] * N]
    draws = torch.tensor([[[0.0, 0.1], [0.0, 0.5], [0.0, 0.9]]])
    assert policy.select(q, legal, 1.0, draws).tolist() == [[0, 1, 3]]
    assert policy.select(q, legal, 0.0, draws).tolist() == [[0, 1, 3]]  # softmax 0.16, 0.44, 0.40
    assert policy.stochastic
