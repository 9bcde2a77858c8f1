"""Define the QPLEX mixer: duplex duelling (Wang et al. 2021).

Each agent's advantage has a positive weight in each joint action.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qmix_lightning.mixers.base import at_least_one, check_inputs
from qmix_lightning.nn.mlp import hypernetwork

__all__ = ["AdvantageWeights", "QPLEXMixer"]

_TINY = 1e-10
"""Keeps what must be positive from being zero."""


class AdvantageWeights(nn.Module):
    """Weights of the agents' advantages in QPLEX, positive, by heads (section 3.2)::

        lambda_i(s, a) = sum_h key_h(s) phi_{h,i}(s) psi_{h,i}(s, a)

    ``key > 0`` weighs a head; ``phi`` and ``psi`` are its attention to each agent, from the state and from state and
    joint action, by sigmoid and not by softmax: agents do not compete. Heads share the hidden layers where there are
    any.

    Args:
        n_agents: ``N``.
        state_dim: ``S``.
        n_actions: ``A``.
        heads: ``H``.
        layers: depth of each of the three networks.
        hidden_dim: their hidden width, from 2 layers on.
    """

    def __init__(
        self, *, n_agents: int, state_dim: int, n_actions: int, heads: int, layers: int, hidden_dim: int
    ) -> None:
        super().__init__()
        at_least_one(attention_heads=heads, attention_layers=layers)
        self.n_actions = n_actions
        self.shape = (heads, n_agents)
        self.key = hypernetwork(state_dim, heads, layers, hidden_dim)
        self.phi = hypernetwork(state_dim, heads * n_agents, layers, hidden_dim)
        self.psi = hypernetwork(state_dim + n_agents * n_actions, heads * n_agents, layers, hidden_dim)

    def forward(self, state: Tensor, actions: Tensor) -> Tensor:
        """Map ``state [B, T, S]`` and ``actions [B, T, N]`` int64 to ``lambda [B, T, N]``."""
        one_hot = state.new_zeros(*actions.shape, self.n_actions).scatter_(-1, actions[..., None], 1.0)
        joint = torch.cat([state, one_hot.flatten(-2)], dim=-1)  # [B, T, S + N A]
        key = self.key(state).abs() + _TINY  # [B, T, H]
        phi = torch.sigmoid(self.phi(state)).unflatten(-1, self.shape)  # [B, T, H, N]
        psi = torch.sigmoid(self.psi(joint)).unflatten(-1, self.shape)
        return (key[..., None] * phi * psi).sum(dim=-2)  # [B, T, N]


class QPLEXMixer(nn.Module):
    """QPLEX mixer, ``Q_tot = sum_i V_i + sum_i lambda_i(s, a) A_i`` with each agent's duelling parts (section 3.2)::

        V_i = w_i(s) max_a Q_i(a) + b_i(s)       A_i = w_i(s) (Q_i - max_a Q_i(a)) <= 0       w_i, lambda_i > 0

    The team's advantage is zero where every agent is greedy and negative elsewhere, for any weights: the joint greedy
    action is the agents' own (individual-global-max). The weights see the joint action, so that how far the others lie
    below is free, and every table whose greedy action is unique is in reach. It is computed in the equal form
    ``sum_i (w_i Q_i + b_i) + sum_i (lambda_i - 1) A_i``.

    Args:
        n_agents: ``N``.
        state_dim: ``S``.
        n_actions: ``A``.
        hypernet_dim: hidden width of the two-layer networks that give ``w`` and ``b``.
        attention_heads: heads of :class:`AdvantageWeights` (the authors: 4 on StarCraft, 10 on matrix games).
        attention_layers: depth of its networks (the authors: 1 on StarCraft, 3 on matrix games).
        attention_dim: their hidden width, from 2 layers on.
        stop_advantage_gradient: let the second sum teach the weights and not the agents, as the paper does: the agents
            learn as in a weighted sum and the maximum in ``A_i`` stays steady. The authors' code stops ``w_i`` too;
            with its gradient kept, no run of a matrix game diverged.
    """

    def __init__(
        self,
        *,
        n_agents: int,
        state_dim: int,
        n_actions: int,
        hypernet_dim: int,
        attention_heads: int,
        attention_layers: int,
        attention_dim: int,
        stop_advantage_gradient: bool,
    ) -> None:
        super().__init__()
        self.n_agents = n_agents
        self.state_dim = state_dim
        self.stop_advantage_gradient = stop_advantage_gradient
        self.weight = hypernetwork(state_dim, n_agents, 2, hypernet_dim)
        self.bias = hypernetwork(state_dim, n_agents, 2, hypernet_dim)
        self.advantage_weights = AdvantageWeights(
            n_agents=n_agents,
            state_dim=state_dim,
            n_actions=n_actions,
            heads=attention_heads,
            layers=attention_layers,
            hidden_dim=attention_dim,
        )

    def forward(self, agent_qs: Tensor, state: Tensor, greedy_qs: Tensor, actions: Tensor) -> Tensor:
        """Return the team's value of the actions taken.

        Args:
            agent_qs: values of the actions taken, ``[B, T, N]``.
            state: ``[B, T, S]``.
            greedy_qs: values of each agent's own greedy legal action by the same network, ``[B, T, N]``.
            actions: the actions taken, ``[B, T, N]`` int64.

        Returns:
            ``q_tot [B, T]``.
        """
        check_inputs(agent_qs, state, self.n_agents, self.state_dim)
        if not agent_qs.shape == greedy_qs.shape == actions.shape:
            raise ValueError(
                f"expected greedy_qs and actions {tuple(agent_qs.shape)}, "
                f"got {tuple(greedy_qs.shape)} and {tuple(actions.shape)}"
            )
        weight = self.weight(state).abs() + _TINY  # [B, T, N]
        value = (weight * agent_qs + self.bias(state)).sum(dim=-1)  # [B, T]
        advantage = agent_qs - greedy_qs  # [B, T, N], at most zero
        if self.stop_advantage_gradient:
            advantage = advantage.detach()
        attention = self.advantage_weights(state, actions)  # [B, T, N]
        return value + ((attention - 1.0) * weight * advantage).sum(dim=-1)  # [B, T]
