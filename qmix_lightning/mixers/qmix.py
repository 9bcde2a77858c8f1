"""QMIX's monotonic mixing network (Rashid et al. 2018, section 4 and figure 2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["POSITIVITY", "QMixer", "hypernetwork"]

POSITIVITY: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "softplus": F.softplus,
    "square": torch.square,
    "exp": torch.exp,
}
"""How a mixing weight is kept from being negative; the paper takes the absolute value."""


def hypernetwork(in_features: int, out_features: int, layers: int, hidden_dim: int) -> nn.Module:
    """A network that produces another's weights: ``layers`` linear layers with ReLU between them."""
    if layers < 1:
        raise ValueError(f"a hypernetwork needs at least one layer, not {layers}")
    if layers > 1 and hidden_dim < 1:
        raise ValueError(f"hypernet_dim must be at least 1, not {hidden_dim}")
    widths = [in_features, *([hidden_dim] * (layers - 1)), out_features]
    modules: list[nn.Module] = []
    for i in range(layers):
        modules += [nn.Linear(widths[i], widths[i + 1]), nn.ReLU()]
    return nn.Sequential(*modules[:-1])


class QMixer(nn.Module):
    """``Q_tot = |W2(s)|^T elu(|W1(s)|^T q + b1(s)) + b2(s)`` (Rashid et al. 2018, section 4).

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
    """

    def __init__(
        self,
        *,
        n_agents: int,
        state_dim: int,
        embed_dim: int,
        hypernet_layers: int,
        hypernet_dim: int,
        positivity: Literal["abs", "softplus", "square", "exp"],
    ) -> None:
        super().__init__()
        if positivity not in POSITIVITY:
            raise ValueError(f"positivity must be one of {', '.join(POSITIVITY)}, not '{positivity}'")
        if embed_dim < 1:
            raise ValueError(f"embed_dim must be at least 1, not {embed_dim}")
        self.n_agents = n_agents
        self.state_dim = state_dim
        self.embed_dim = embed_dim
        self.positivity = positivity
        self.weight_1 = hypernetwork(state_dim, n_agents * embed_dim, hypernet_layers, hypernet_dim)
        self.bias_1 = nn.Linear(state_dim, embed_dim)
        self.weight_2 = hypernetwork(state_dim, embed_dim, hypernet_layers, hypernet_dim)
        self.bias_2 = hypernetwork(state_dim, 1, 2, embed_dim)

    def forward(self, agent_qs: Tensor, state: Tensor) -> Tensor:
        """``agent_qs [B, T, N]`` and ``state [B, T, S]`` to ``q_tot [B, T]``."""
        if agent_qs.shape[-1] != self.n_agents or state.shape != (*agent_qs.shape[:-1], self.state_dim):
            raise ValueError(
                f"expected agent_qs [..., {self.n_agents}] and state [..., {self.state_dim}], "
                f"got {tuple(agent_qs.shape)} and {tuple(state.shape)}"
            )
        positive = POSITIVITY[self.positivity]
        weight_1 = positive(self.weight_1(state)).unflatten(-1, (self.n_agents, self.embed_dim))  # [B, T, N, M]
        mixed = torch.einsum("...n,...nm->...m", agent_qs.to(weight_1.dtype), weight_1)  # [B, T, M]
        hidden = F.elu(mixed + self.bias_1(state))
        weight_2 = positive(self.weight_2(state))  # [B, T, M]
        return (hidden * weight_2).sum(dim=-1) + self.bias_2(state).squeeze(-1)  # [B, T]
