"""Define the critic of the PPO learners: a network like the agents' own, with one value for its output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from qmix_lightning.agents.policy import Policy
from qmix_lightning.types import EnvSpec, TrajectoryBatch

__all__ = ["HistoryCritic", "critic_spec"]


def critic_spec(spec: EnvSpec, *, obs: bool, state: bool) -> EnvSpec:
    """Return ``spec`` with what the critic sees in place of the observation.

    Args:
        spec: of the environment.
        obs: the agent's own observation.
        state: the global state, behind it.

    Raises:
        ValueError: that is nothing at all.
    """
    size = obs * spec.obs_dim + state * spec.state_dim
    if size == 0:
        raise ValueError("the environment has no state, so the critic needs the observations: set critic_obs=true")
    return replace(
        spec,
        obs_dim=size,
        obs_dims=(size,) * spec.n_agents,
        obs_entities=spec.obs_entities if obs else (),
        pictures=spec.pictures if obs else (),
    )


class HistoryCritic(nn.Module):
    """Critic ``V`` of what each agent's slot has seen so far: the agents' network, its head one linear output.

    It has the memory that the agents have, and goes on when an agent dies: then the slot's observation is zero, its
    action the no-op, and its value that of what the team is still going to earn.

    Args:
        network: made for :func:`critic_spec`; its head is replaced.
        obs: it sees the agent's own observation.
        state: it sees the global state.
    """

    def __init__(self, network: Policy, *, obs: bool, state: bool) -> None:
        super().__init__()
        self.obs = obs
        self.state = state
        self.network = network
        network.agent.head = nn.Linear(network.agent.feature_dim, 1)

    def seen(self, batch: TrajectoryBatch) -> TrajectoryBatch:
        """Return a masked batch as the critic sees it: every slot goes on to the row's end, dead or alive."""
        valid = batch.row_valid()[..., None]  # [B, T+1, 1]
        state = batch.state.unsqueeze(2).expand(*batch.obs.shape[:3], -1)  # [B, T+1, N, S]
        parts = [*([batch.obs] if self.obs else []), *([state] if self.state else [])]
        seen = replace(batch, obs=torch.cat(parts, dim=-1), agent_mask=valid.expand_as(batch.agent_mask))
        seen.host = None if batch.host is None else replace(batch.host.with_dead_present(), restarts=None)
        return seen

    def forward(self, batch: TrajectoryBatch) -> Tensor:
        """Return the values ``[B, T+1, N]`` of a masked batch, in float32 or wider, in the scale that it learns."""
        return self.network.unroll(self.seen(batch)).squeeze(-1)

    def observe(self, batch: TrajectoryBatch, all_reduce: Callable[[Tensor], Tensor]) -> None:
        """Add what it sees of a masked batch to the running statistics of its inputs, if there are any."""
        self.network.inputs.observe(self.seen(batch), all_reduce)

    @torch.no_grad()
    def rescale(self, mean: Tensor, deviation: Tensor, new_mean: Tensor, new_deviation: Tensor) -> None:
        """Change the output so that in the new scale it means what it meant before (van Hasselt et al. 2016).

        That is, ``output * deviation + mean`` stays.
        """
        head = cast(nn.Linear, self.network.agent.head)
        head.weight.mul_(deviation / new_deviation)
        head.bias.mul_(deviation).add_(mean - new_mean).div_(new_deviation)
