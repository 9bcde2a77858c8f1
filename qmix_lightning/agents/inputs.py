"""Put an agent's input together: the one place where this is done; collector, learner and export all use it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from qmix_lightning.nn.packing import Packing
from qmix_lightning.nn.running_moments import RunningMoments
from qmix_lightning.types import TrajectoryBatch

__all__ = ["InputBuilder"]


class InputBuilder(nn.Module):
    """Joins observation, last action (one-hot) and agent identity (one-hot), each switchable.

    Args:
        n_agents: ``N``.
        n_actions: ``A``.
        obs_dim: ``O``.
        use_obs: include the observation.
        use_last_action: include the action before, zeros where there was none.
        use_agent_id: include which agent it is.
        normalize_obs: subtract each feature's running mean and divide by its deviation, over agents that are alive; the
            result is clipped to [-10, 10].
    """

    identity: Tensor

    def __init__(
        self,
        *,
        n_agents: int,
        n_actions: int,
        obs_dim: int,
        use_obs: bool,
        use_last_action: bool,
        use_agent_id: bool,
        normalize_obs: bool,
    ) -> None:
        super().__init__()
        if not (use_obs or use_last_action or use_agent_id):
            raise ValueError("the agent's input is empty: switch on use_obs, use_last_action or use_agent_id")
        self.n_agents = n_agents
        self.n_actions = n_actions
        self.obs_dim = obs_dim
        self.use_obs = use_obs
        self.use_last_action = use_last_action
        self.use_agent_id = use_agent_id
        self.moments = RunningMoments(obs_dim) if normalize_obs and use_obs else None
        self.register_buffer("identity", torch.eye(n_agents), persistent=False)

    @property
    def output_dim(self) -> int:
        """Size of the joined input."""
        return sum(self._sizes)

    @property
    def _sizes(self) -> tuple[int, int, int]:
        return (
            self.use_obs * self.obs_dim,
            self.use_last_action * self.n_actions,
            self.use_agent_id * self.n_agents,
        )

    def observe(self, batch: TrajectoryBatch, all_reduce: Callable[[Tensor], Tensor]) -> None:
        """Add the batch's observations to the running statistics, if there are any."""
        if self.moments is not None:
            self.moments.update(batch.obs, batch.agent_mask & batch.row_valid()[..., None], all_reduce)

    def forward(self, obs: Tensor, last_action: Tensor) -> Tensor:
        """Join ``obs [..., N, O]`` and ``last_action [..., N]`` int64 (``-1``: none) to ``[..., N, I]``."""
        if obs.shape[-2:] != (self.n_agents, self.obs_dim):
            raise ValueError(f"obs must end in {(self.n_agents, self.obs_dim)}, got {tuple(obs.shape)}")
        if last_action.shape != obs.shape[:-1]:
            raise ValueError(f"last_action must be {tuple(obs.shape[:-1])}, got {tuple(last_action.shape)}")
        parts: list[Tensor] = []
        if self.use_obs:
            parts.append(self._normalized(obs))
        if self.use_last_action:
            one_hot = obs.new_zeros((*last_action.shape, self.n_actions + 1))
            one_hot.scatter_(-1, (last_action + 1)[..., None], 1.0)
            parts.append(one_hot[..., 1:])  # slot 0 was "no action yet"
        if self.use_agent_id:
            parts.append(self.identity.to(obs.dtype).expand(*obs.shape[:-2], -1, -1))
        return torch.cat(parts, dim=-1)  # [..., N, I]

    @torch.no_grad()
    def packed(self, batch: TrajectoryBatch, packing: Packing) -> Tensor:
        """Join the input of ``packing``'s rows: ``[P, C, I]``."""
        source, sizes = packing.source, self._sizes
        obs = batch.obs.reshape(-1, self.obs_dim)
        joined = obs.new_zeros(len(source), sum(sizes))  # [P * C, I]
        seen, last_action, agent_id = joined.split(sizes, dim=1)
        if self.use_obs:
            torch.index_select(obs, 0, source, out=seen)  # into its place: a copy of large batches costs pages
            if self.moments is not None:
                seen.copy_(self._normalized(seen))
        if self.use_last_action:
            last = batch.last_actions().reshape(-1, 1).index_select(0, source)
            last_action.scatter_(1, last.clamp(min=0), (last >= 0).to(obs.dtype))
        if self.use_agent_id:
            agent_id.scatter_(1, (source % self.n_agents)[:, None], 1.0)
        return joined.unflatten(0, (-1, packing.columns))

    def _normalized(self, obs: Tensor) -> Tensor:
        return obs if self.moments is None else self.moments.normalize(obs).clamp(-10.0, 10.0)
