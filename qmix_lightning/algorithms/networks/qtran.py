"""Define the networks that QTRAN learns beside the agents: team values from their features (Son et al. 2019).

An agent's features are what its head is given; these networks put heads of their own on them, so that all learn one
body (``h_i = [h_{Q,i}, h_{V,i}]`` in the paper). Each agent's features are encoded with its identity, since parameters
may be shared, and the encodings of alive agents are added up: the size does not grow with the team.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qmix_lightning.mixers.base import at_least_one
from qmix_lightning.nn.mlp import hypernetwork

__all__ = ["AgentEncoder", "CounterfactualValue", "JointValue", "StateValue", "mean_over"]


def mean_over(values: Tensor, agents: Tensor) -> Tensor:
    """Average ``values [..., N]`` over the agents of ``agents [..., N]`` bool, 0 where there is none; to ``[...]``."""
    total = values.where(agents, values.new_zeros(())).sum(dim=-1)
    return total / agents.sum(dim=-1).clamp(min=1)


class AgentEncoder(nn.Module):
    """Encoder of each agent's features, and of its action if it is made for them; zero for the dead.

    From ``features [..., N, F]``, and ``actions [..., N]``, to ``[..., N, H]``.

    Args:
        n_agents: ``N``.
        feature_dim: ``F``.
        n_actions: ``A``, or 0 for an encoding of the features alone.
        hidden_dim: ``H``.
    """

    def __init__(self, *, n_agents: int, feature_dim: int, n_actions: int, hidden_dim: int) -> None:
        super().__init__()
        self.n_agents = n_agents
        self.n_actions = n_actions
        self.network = hypernetwork(feature_dim + n_agents + n_actions, hidden_dim, 2, hidden_dim)

    def forward(self, features: Tensor, alive: Tensor, actions: Tensor | None = None) -> Tensor:
        """Encode ``features [..., N, F]`` and ``actions [..., N]`` int64 as ``[..., N, H]``.

        ``alive [..., N]`` is bool.
        """
        parts = [features, _identities(features)]
        if actions is not None:
            parts.append(F.one_hot(actions, self.n_actions).to(features.dtype))
        encoded = self.network(torch.cat(parts, dim=-1))
        return encoded.where(alive[..., None], encoded.new_zeros(()))  # [..., N, H]


class JointValue(nn.Module):
    """QTRAN-base's joint action-value network ``f_r``: ``Q_jt(tau, u)`` of one joint action.

    Args:
        n_agents: ``N``.
        n_actions: ``A``.
        feature_dim: ``F``.
        state_dim: ``S``; 0 leaves the state out, as the paper does.
        hidden_dim: width of every hidden layer.
    """

    def __init__(self, *, n_agents: int, n_actions: int, feature_dim: int, state_dim: int, hidden_dim: int) -> None:
        super().__init__()
        at_least_one(joint_hidden_dim=hidden_dim)
        self.state_dim = state_dim
        self.encode = AgentEncoder(
            n_agents=n_agents, feature_dim=feature_dim, n_actions=n_actions, hidden_dim=hidden_dim
        )
        self.value = hypernetwork(hidden_dim + state_dim, 1, 3, hidden_dim)

    def forward(self, features: Tensor, actions: Tensor, alive: Tensor, state: Tensor) -> Tensor:
        """Return the value of a joint action.

        Args:
            features: ``[..., N, F]``.
            actions: ``[..., N]`` int64.
            alive: ``[..., N]`` bool.
            state: ``[..., S]``.

        Returns:
            ``[...]``.
        """
        team = self.encode(features, alive, actions).sum(dim=-2)  # [..., H]
        return self.value(_with_state(team, state, self.state_dim)).squeeze(-1)

    def of(self, features: Tensor, actions: Tensor, alive: Tensor, state: Tensor) -> Tensor:
        """Return the team's one value of a joint action, ``[...]``: the same as ``forward``."""
        return self(features, actions, alive, state)


class CounterfactualValue(nn.Module):
    """QTRAN-alt's counterfactual joint networks, ``Q_jt(tau, . , u_{-i})`` for each agent (Son et al. 2019).

    For each agent, the team's value of each of its actions with the others' as they are, from the agent's features and
    the encodings of the others with their actions. One network for all agents, distinguished by their identity.

    Args:
        n_agents: ``N``.
        n_actions: ``A``.
        feature_dim: ``F``.
        state_dim: ``S``; 0 leaves the state out, as the paper does.
        hidden_dim: width of every hidden layer.
    """

    def __init__(self, *, n_agents: int, n_actions: int, feature_dim: int, state_dim: int, hidden_dim: int) -> None:
        super().__init__()
        at_least_one(joint_hidden_dim=hidden_dim)
        self.state_dim = state_dim
        self.encode = AgentEncoder(
            n_agents=n_agents, feature_dim=feature_dim, n_actions=n_actions, hidden_dim=hidden_dim
        )
        self.value = hypernetwork(feature_dim + n_agents + hidden_dim + state_dim, n_actions, 3, hidden_dim)

    def forward(self, features: Tensor, actions: Tensor, alive: Tensor, state: Tensor) -> Tensor:
        """Return ``[..., N, A]``, of which a dead agent's mean nothing; arguments as for :class:`JointValue`."""
        encoded = self.encode(features, alive, actions)  # [..., N, H]
        others = encoded.sum(dim=-2, keepdim=True) - encoded
        own = torch.cat([features, _identities(features), others], dim=-1)
        each = state[..., None, :].expand(*features.shape[:-1], -1)  # [..., N, S]
        return self.value(_with_state(own, each, self.state_dim))  # [..., N, A]

    def of(self, features: Tensor, actions: Tensor, alive: Tensor, state: Tensor) -> Tensor:
        """Return the team's one value of a joint action, ``[...]``: the mean of the alive agents' values of it."""
        values = self(features, actions, alive, state).gather(-1, actions[..., None]).squeeze(-1)  # [..., N]
        return mean_over(values, alive)


class StateValue(nn.Module):
    """QTRAN's state-value network ``f_v``: ``V_jt(tau)``, which makes up for what the agents cannot see.

    Args:
        n_agents: ``N``.
        feature_dim: ``F``.
        state_dim: ``S``; 0 leaves the state out, as the paper does.
        hidden_dim: width of every hidden layer.
    """

    def __init__(self, *, n_agents: int, feature_dim: int, state_dim: int, hidden_dim: int) -> None:
        super().__init__()
        at_least_one(joint_hidden_dim=hidden_dim)
        self.state_dim = state_dim
        self.encode = AgentEncoder(n_agents=n_agents, feature_dim=feature_dim, n_actions=0, hidden_dim=hidden_dim)
        self.value = hypernetwork(hidden_dim + state_dim, 1, 3, hidden_dim)

    def forward(self, features: Tensor, alive: Tensor, state: Tensor) -> Tensor:
        """Map ``features [..., N, F]``, ``alive [..., N]`` bool and ``state [..., S]`` to ``[...]``."""
        team = self.encode(features, alive).sum(dim=-2)  # [..., H]
        return self.value(_with_state(team, state, self.state_dim)).squeeze(-1)


def _identities(features: Tensor) -> Tensor:
    """Return which agent each row of ``features [..., N, F]`` belongs to, one-hot ``[..., N, N]``."""
    n = features.shape[-2]
    return torch.eye(n, dtype=features.dtype, device=features.device).expand(*features.shape[:-2], n, n)


def _with_state(values: Tensor, state: Tensor, state_dim: int) -> Tensor:
    return torch.cat([values, state.to(values.dtype)], dim=-1) if state_dim else values
