"""Small random episodes to be stored, and what environments say of them."""

import torch

from qmix_lightning.types import EnvSpec, Episode

N, A, OBS, S = 2, 3, 2, 3
TENSORS = ("obs", "state", "avail_actions", "agent_mask", "actions", "reward")


def spec(n_actions=A):
    return EnvSpec(
        n_agents=N,
        n_actions=n_actions,
        obs_dim=OBS,
        state_dim=S,
        obs_dims=(OBS,) * N,
        action_counts=(n_actions,) * N,
        agent_names=("a", "b"),
        group_of_agent=(0, 0),
    )


def episode(number, length, n_actions=A):
    """A random one of legal actions; the dead see nothing, and nobody is dead in the first row."""
    g = torch.Generator().manual_seed(number)
    alive = torch.rand(length + 1, N, generator=g) > 0.2
    alive[0] = True
    legal = torch.rand(length + 1, N, n_actions, generator=torch.Generator().manual_seed(number + 1)) > 0.5
    actions = torch.randint(n_actions, (length, N), generator=g)
    legal[:-1].scatter_(-1, actions[..., None], True)
    return Episode(
        obs=torch.where(alive[..., None], torch.randn(length + 1, N, OBS, generator=g), 0.0),
        state=torch.randn(length + 1, S, generator=g),
        avail_actions=legal,
        agent_mask=alive,
        actions=actions,
        reward=torch.randn(length, generator=g),
        terminated=number % 3 == 0,
        truncated=number % 3 == 1,
    )


def assert_same(left, right):
    """Two episodes are equal bit for bit."""
    assert (left.terminated, left.truncated, left.length) == (right.terminated, right.truncated, right.length)
    for name in TENSORS:
        a, b = getattr(left, name), getattr(right, name)
        assert a.shape == b.shape, name
        assert torch.equal(a, b.to(a.dtype)), name


def battle(n, obs, state, actions, limit):
    """SMAC's shapes: 3s5z and MMM."""
    names = tuple(f"unit_{i}" for i in range(n))
    sizes = {"obs_dims": (obs,) * n, "action_counts": (actions,) * n, "group_of_agent": (0,) * n}
    return EnvSpec(
        n_agents=n,
        n_actions=actions,
        obs_dim=obs,
        state_dim=state,
        agent_names=names,
        episode_limit=limit,
        **sizes,
    )


def whole(s, length: int, **changed) -> Episode:
    """An episode in which nobody dies."""
    n, rows = s.n_agents, length + 1
    return Episode(
        **{
            "obs": torch.randn(rows, n, s.obs_dim),
            "state": torch.randn(rows, s.state_dim),
            "avail_actions": torch.ones(rows, n, s.n_actions, dtype=torch.bool),
            "agent_mask": torch.ones(rows, n, dtype=torch.bool),
            "actions": torch.zeros(length, n, dtype=torch.int64),
            "reward": torch.zeros(length),
            "terminated": True,
            "truncated": False,
            **changed,
        }
    )
