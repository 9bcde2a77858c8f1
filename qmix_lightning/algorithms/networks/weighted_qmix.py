"""Define the unrestricted team value of weighted QMIX (Rashid et al. 2020): no weight is kept from being negative."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qmix_lightning.mixers.base import at_least_one, check_inputs
from qmix_lightning.nn.mlp import hypernetwork

__all__ = ["CentralMixer"]


class CentralMixer(nn.Module):
    """Central mixer of weighted QMIX, ``Q*(s, u) = f(Q_1, .., Q_N, s)``: a plain feed-forward network.

    It is not monotonic, so it can rate any joint action. It is not a choice of ``mixer=``: the agents' own greedy
    actions are not greedy for it, so nothing can act by it. As the paper's text has it; the authors' code adds a second
    network's ``V(s)`` to the output, which changes how it is learned, not what it can hold.

    Args:
        n_agents: ``N``.
        state_dim: ``S``.
        central_hidden_dim: width of the hidden layers.
        central_hidden_layers: how many.
    """

    def __init__(self, *, n_agents: int, state_dim: int, central_hidden_dim: int, central_hidden_layers: int) -> None:
        super().__init__()
        at_least_one(central_hidden_dim=central_hidden_dim, central_hidden_layers=central_hidden_layers)
        self.n_agents = n_agents
        self.state_dim = state_dim
        self.value = hypernetwork(n_agents + state_dim, 1, central_hidden_layers + 1, central_hidden_dim)

    def forward(self, agent_qs: Tensor, state: Tensor) -> Tensor:
        """Mix ``agent_qs [B, T, N]`` and ``state [B, T, S]`` to ``[B, T]``."""
        check_inputs(agent_qs, state, self.n_agents, self.state_dim)
        return self.value(torch.cat([agent_qs.to(state.dtype), state], dim=-1)).squeeze(-1)  # [B, T]
