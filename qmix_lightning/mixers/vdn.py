"""Define the value-decomposition mixer: the team's value is the sum of the agents' (Sunehag et al. 2018)."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["VDNMixer"]


class VDNMixer(nn.Module):
    """VDN mixer, ``Q_tot = sum_i Q_i`` (Sunehag et al. 2018, eq. 1); the state is not used."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, agent_qs: Tensor, state: Tensor) -> Tensor:
        """Mix ``agent_qs [B, T, N]`` to ``[B, T]``."""
        return agent_qs.sum(dim=-1)
