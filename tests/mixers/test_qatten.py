"""Qatten: its formula, and that it is monotonic and linear in the agents' values."""

import pytest
import torch

from support.cases import every_value
from support.small_mixers import qatten, seen_at, small_mixer
from support.small_policies import OBS, A, N, S

F64 = torch.float64


def make(*, seed=0, spread=2.0, **changed):
    torch.manual_seed(seed)
    mixer = small_mixer("qatten", n=N, a=A, obs=OBS, state=S, **changed).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.mul_(spread)
    return mixer


def random_inputs(count, seed=1):
    g = torch.Generator().manual_seed(seed)
    return (
        3 * torch.randn(count, 1, N, generator=g, dtype=F64),
        torch.randn(count, 1, S, generator=g, dtype=F64),
        torch.randn(count, 1, N, OBS, generator=g, dtype=F64),
    )


@pytest.mark.parametrize("weighted", [True, False])
def test_equals_the_published_formula(weighted):
    mixer = make(weighted_heads=weighted)
    q, state, obs = random_inputs(6)
    got = mixer(q, state, obs).detach()
    assert got.shape == (6, 1)
    for b in range(6):
        seen = seen_at(q[b, 0], state[b, 0], q[b, 0], torch.zeros(N, dtype=torch.int64), obs[b, 0])
        assert float(got[b, 0]) == pytest.approx(qatten(mixer, seen), rel=1e-9)


@pytest.mark.parametrize(("weighted", "seed"), every_value([True, False], range(3)))
def test_monotonic_and_linear_in_the_agents_values(seed, weighted):
    mixer = make(seed=seed, weighted_heads=weighted)
    q, state, obs = random_inputs(200)
    (slope,) = torch.autograd.grad(mixer(q.requires_grad_(), state, obs).sum(), q)
    assert (slope > 0).all()
    constant = mixer(torch.zeros_like(q), state, obs)
    torch.testing.assert_close(mixer(q, state, obs), constant + (slope * q).sum(-1))
    if not weighted:  # every head shares out 1
        torch.testing.assert_close(slope.sum(-1), torch.full((200, 1), float(mixer.shape[0]), dtype=F64))


def test_attention_is_shared_out_over_the_agents_by_state_and_observation():
    mixer = make()
    _, state, obs = random_inputs(50)
    attention = mixer.attention(state, obs)  # [B, T, H, N]
    assert attention.shape == (50, 1, 3, N)
    assert (attention > 0).all()
    torch.testing.assert_close(attention.sum(-1), torch.ones(50, 1, 3, dtype=F64))
    assert not torch.allclose(mixer.attention(2 * state, obs), attention)
    swapped = obs.flip(2)
    torch.testing.assert_close(mixer.attention(state, swapped), attention.flip(-1))  # what counts is who sees what
    assert not torch.allclose(mixer.attention(state, swapped), attention)


def test_wrong_shapes_are_named():
    q, state, obs = random_inputs(2)
    with pytest.raises(ValueError, match=r"expected obs \(2, 1, 3, 5\), got \(2, 1, 2, 5\)"):
        make()(q, state, obs[:, :, :2])
    with pytest.raises(ValueError, match=r"expected agent_qs \[..., 3\] and state \[..., 6\]"):
        make()(q, state[..., :2], obs)


@pytest.mark.parametrize("name", ["heads", "embed_dim", "hypernet_dim"])
def test_bad_settings(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
        make(**{name: 0})
