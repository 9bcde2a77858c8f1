"""Define the VDN-S mixer: a sum and a state-dependent bias (Rashid et al. 2018, section 6.2)."""

from __future__ import annotations

from torch import Tensor, nn

from qmix_lightning.mixers.base import at_least_one, check_inputs
from qmix_lightning.nn.mlp import hypernetwork

__all__ = ["StateBiasMixer"]


class StateBiasMixer(nn.Module):
    """VDN-S mixer, ``Q_tot = sum_i Q_i + b(s)``, the bias from a two-layer network with ReLU as QMIX's last bias.

    Args:
        n_agents: ``N``.
        state_dim: ``S``.
        bias_dim: hidden width of the bias's network (32 in the paper).
    """

    def __init__(self, *, n_agents: int, state_dim: int, bias_dim: int) -> None:
        super().__init__()
        at_least_one(bias_dim=bias_dim)
        self.n_agents = n_agents
        self.state_dim = state_dim
        self.bias = hypernetwork(state_dim, 1, 2, bias_dim)

    def forward(self, agent_qs: Tensor, state: Tensor) -> Tensor:
        """Mix ``agent_qs [B, T, N]`` and ``state [B, T, S]`` to ``q_tot [B, T]``."""
        check_inputs(agent_qs, state, self.n_agents, self.state_dim)
        return agent_qs.sum(dim=-1) + self.bias(state).squeeze(-1)  # [B, T]
