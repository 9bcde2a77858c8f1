"""Make the heads of agents: layers from an agent's features to its values of actions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from qmix_lightning.nn.layers import AgentLinear

__all__ = ["DuelingHead", "make_head"]


class DuelingHead(nn.Module):
    """Duelling head, ``Q(a) = V + A(a) - mean_a' A(a')`` (Wang et al. 2016, eq. 9).

    The mean is over all actions, legal or not.
    """

    def __init__(self, sets: Sequence[int], in_features: int, n_actions: int) -> None:
        super().__init__()
        self.value = AgentLinear(sets, in_features, 1)
        self.advantage = AgentLinear(sets, in_features, n_actions)

    def forward(self, features: Tensor) -> Tensor:
        """Map ``features [..., N, F]`` to ``q [..., N, A]``."""
        advantage = self.advantage(features)
        return self.value(features) + advantage - advantage.mean(dim=-1, keepdim=True)


def make_head(sets: Sequence[int], in_features: int, n_actions: int, *, dueling: bool) -> nn.Module:
    """Return a linear head, or a duelling one."""
    return (DuelingHead if dueling else AgentLinear)(sets, in_features, n_actions)
