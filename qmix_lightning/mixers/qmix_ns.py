"""Define the QMIX-NS mixer: QMIX's mixing network without the state (Rashid et al. 2018, section 6.2)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from qmix_lightning.mixers.base import Positivity, at_least_one, positivity_named

__all__ = ["QMixerWithoutState"]


class QMixerWithoutState(nn.Module):
    """QMIX-NS mixer, ``Q_tot = |w2|^T elu(|W1|^T q + b1) + b2``.

    Weights and biases are learned as they are, not from the state: what QMIX adds to it is the hypernetworks alone.
    Weights stay non-negative, so ``dQ_tot/dQ_i >= 0`` (eq. 5).

    Args:
        n_agents: ``N``.
        embed_dim: width of the mixing network's hidden layer.
        positivity: ``abs`` (the paper's), ``softplus``, ``square`` or ``exp``.
    """

    def __init__(self, *, n_agents: int, embed_dim: int, positivity: Positivity) -> None:
        super().__init__()
        at_least_one(embed_dim=embed_dim)
        self.n_agents = n_agents
        self.positive = positivity_named(positivity)
        self.hidden = nn.Linear(n_agents, embed_dim)
        self.output = nn.Linear(embed_dim, 1)

    def forward(self, agent_qs: Tensor, state: Tensor) -> Tensor:
        """Mix ``agent_qs [B, T, N]`` to ``q_tot [B, T]``; the state is not used."""
        if agent_qs.shape[-1] != self.n_agents:
            raise ValueError(f"expected agent_qs [..., {self.n_agents}], got {tuple(agent_qs.shape)}")
        weight_1, weight_2 = self.positive(self.hidden.weight), self.positive(self.output.weight)
        hidden = F.elu(F.linear(agent_qs.to(weight_1.dtype), weight_1, self.hidden.bias))  # [B, T, M]
        return F.linear(hidden, weight_2, self.output.bias).squeeze(-1)  # [B, T]
