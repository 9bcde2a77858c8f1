"""Define the QMIX-Lin mixer: QMIX without the hidden layer, a weighted sum (Rashid et al. 2018, section 6.2)."""

from __future__ import annotations

from torch import Tensor, nn

from qmix_lightning.mixers.base import Positivity, at_least_one, check_inputs, positivity_named
from qmix_lightning.nn.mlp import hypernetwork

__all__ = ["LinearMixer"]


class LinearMixer(nn.Module):
    """QMIX-Lin mixer, ``Q_tot = sum_i |w_i(s)| Q_i + b(s)``.

    Weights and bias come from hypernetworks on the state; there is no non-linearity. Weights are non-negative, so
    ``dQ_tot/dQ_i = |w_i(s)| >= 0`` (eq. 5). Within a state it is additive.

    Args:
        n_agents: ``N``.
        state_dim: ``S``.
        hypernet_layers: depth of the weights' hypernetwork.
        hypernet_dim: hidden width of a hypernetwork deeper than one layer.
        bias_dim: hidden width of the bias's two-layer network (32 in the paper).
        positivity: ``abs`` (the paper's), ``softplus``, ``square`` or ``exp``.
    """

    def __init__(
        self,
        *,
        n_agents: int,
        state_dim: int,
        hypernet_layers: int,
        hypernet_dim: int,
        bias_dim: int,
        positivity: Positivity,
    ) -> None:
        super().__init__()
        at_least_one(bias_dim=bias_dim)
        self.n_agents = n_agents
        self.state_dim = state_dim
        self.positive = positivity_named(positivity)
        self.weight = hypernetwork(state_dim, n_agents, hypernet_layers, hypernet_dim)
        self.bias = hypernetwork(state_dim, 1, 2, bias_dim)

    def forward(self, agent_qs: Tensor, state: Tensor) -> Tensor:
        """Mix ``agent_qs [B, T, N]`` and ``state [B, T, S]`` to ``q_tot [B, T]``."""
        check_inputs(agent_qs, state, self.n_agents, self.state_dim)
        weight = self.positive(self.weight(state))  # [B, T, N]
        return (weight * agent_qs).sum(dim=-1) + self.bias(state).squeeze(-1)  # [B, T]
