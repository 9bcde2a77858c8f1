"""Define QMIX's monotonic mixing network (Rashid et al. 2018, section 4 and figure 2)."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qmix_lightning.mixers.base import POSITIVITY, Positivity, positivity_named
from qmix_lightning.nn.mlp import hypernetwork, side_by_side

__all__ = ["QMixer"]


class QMixer(nn.Module):
    """QMIX mixer, ``Q_tot = |W2(s)|^T elu(|W1(s)|^T q + b1(s)) + b2(s)`` (Rashid et al. 2018, section 4).

    All weights and biases come from hypernetworks on the global state. Weights are made non-negative, so
    ``dQ_tot/dQ_i >= 0`` (eq. 5) and each agent's own greedy action is greedy for the team; biases are unconstrained,
    the last one from a two-layer network with ReLU.

    Args:
        n_agents: ``N``.
        state_dim: ``S``.
        embed_dim: width of the mixing network's hidden layer.
        hypernet_layers: depth of the weights' hypernetworks: 1 in the paper, 2 in PyMARL's configuration.
        hypernet_dim: hidden width of a hypernetwork deeper than one layer.
        positivity: ``abs`` (the paper's), ``softplus``, ``square`` or ``exp``.
        init_scale: what the initial weights and biases of the hypernetworks' last layers are multiplied by: 1 leaves
            them as torch makes them. With states of large numbers the team's value then begins far from any return,
            and its bootstraps may keep it there; 0.1 begins near zero.
    """

    def __init__(
        self,
        *,
        n_agents: int,
        state_dim: int,
        embed_dim: int,
        hypernet_layers: int,
        hypernet_dim: int,
        positivity: Positivity,
        init_scale: float,
    ) -> None:
        super().__init__()
        if not init_scale > 0.0:
            raise ValueError(f"init_scale must be above 0, not {init_scale}")
        positivity_named(positivity)
        if embed_dim < 1:
            raise ValueError(f"embed_dim must be at least 1, not {embed_dim}")
        self.n_agents = n_agents
        self.state_dim = state_dim
        self.embed_dim = embed_dim
        self.positivity: Positivity = positivity
        self.weight_1 = hypernetwork(state_dim, n_agents * embed_dim, hypernet_layers, hypernet_dim)
        self.bias_1 = nn.Linear(state_dim, embed_dim)
        self.weight_2 = hypernetwork(state_dim, embed_dim, hypernet_layers, hypernet_dim)
        self.bias_2 = hypernetwork(state_dim, 1, 2, embed_dim)
        with torch.no_grad():
            for network in (self.weight_1, self.bias_1, self.weight_2, self.bias_2):
                last = cast(nn.Linear, network[-1] if isinstance(network, nn.Sequential) else network)
                last.weight.mul_(init_scale)
                last.bias.mul_(init_scale)

    def forward(self, agent_qs: Tensor, state: Tensor) -> Tensor:
        """Mix ``agent_qs [B, T, N]`` and ``state [B, T, S]`` to ``q_tot [B, T]``."""
        if agent_qs.shape[-1] != self.n_agents or state.shape != (*agent_qs.shape[:-1], self.state_dim):
            raise ValueError(
                f"expected agent_qs [..., {self.n_agents}] and state [..., {self.state_dim}], "
                f"got {tuple(agent_qs.shape)} and {tuple(state.shape)}"
            )
        positive = POSITIVITY[self.positivity]
        weight_1, bias_1, weight_2, bias_2 = side_by_side(
            [self.weight_1, self.bias_1, self.weight_2, self.bias_2], state
        )
        weight_1 = positive(weight_1).unflatten(-1, (self.n_agents, self.embed_dim))  # [B, T, N, M]
        # A product of one row with a small matrix, for each step: cheaper as a sum than as so many matrix products.
        mixed = (agent_qs.to(weight_1.dtype)[..., None] * weight_1).sum(dim=-2)  # [B, T, M]
        hidden = F.elu(mixed + bias_1)
        return (hidden * positive(weight_2)).sum(dim=-1) + bias_2.squeeze(-1)  # [B, T]
