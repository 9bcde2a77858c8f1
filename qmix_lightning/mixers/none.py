"""Leave the agents' values unmixed: every agent learns from the team reward by itself (IQL, Tampuu et al. 2017)."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["NoMixer"]


class NoMixer(nn.Module):
    """Mixer that returns the agents' own values, unmixed."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, agent_qs: Tensor, state: Tensor) -> Tensor:
        """Return ``agent_qs [B, T, N]`` as it is: one value for each agent instead of one for the team."""
        return agent_qs
