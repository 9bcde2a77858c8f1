"""Define what is seen, stored and learned from: observations, transitions, episodes and batches of them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from copy import copy
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from qmix_lightning.runtime.moved import warn_renamed

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = [
    "NO_OP",
    "Episode",
    "EpisodeStats",
    "HostMasks",
    "Observation",
    "TrainBatch",
    "TrajectoryBatch",
    "Transition",
]


NO_OP = 0
"""The action of a dead, absent or padded agent."""


@dataclass
class Observation:
    """The observations, states and masks that ``E`` environments show before a joint step.

    Shapes: ``obs [E, N, O]`` and ``state [E, S]`` float32, ``avail_actions [E, N, A]`` and
    ``agent_mask [E, N]`` bool. An environment may reuse the buffers at its next call.
    """

    obs: Tensor
    state: Tensor
    avail_actions: Tensor
    agent_mask: Tensor


@dataclass
class Transition:
    """The outcome of a joint step in ``E`` environments; ``next`` is the true successor, never a reset.

    Shapes: ``reward [E]`` float32, ``terminated [E]`` and ``truncated [E]`` bool,
    ``agent_reward [E, N]`` float32 or ``None``, ``metrics[name] [E]`` float32 for every name in
    ``EnvSpec.episode_metrics``, read only where the episode ended. ``failed [E]`` bool or ``None``: the simulator
    failed; the episode in flight means nothing and the environment waits for a reset.
    """

    next: Observation
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    agent_reward: Tensor | None = None
    metrics: dict[str, Tensor] = field(default_factory=dict)
    failed: Tensor | None = None


@dataclass(frozen=True)
class HostMasks:
    """A batch's masks in host memory: how much there is to compute is known there, without waiting for the device.

    Shapes: ``agent_mask [B, T+1, N]`` and ``filled [B, T]`` bool; ``restarts`` as in :class:`TrajectoryBatch`.
    """

    agent_mask: Tensor
    filled: Tensor
    restarts: Tensor | None = None

    def mask_invalid(self) -> HostMasks:
        """Return the masks of the masked batch."""
        return replace(self, agent_mask=self.agent_mask & _row_valid(self.filled)[..., None])

    def with_dead_present(self) -> HostMasks:
        """Return the masks of the batch whose dead agents are present."""
        present, restarts = _dead_present(self.agent_mask, self.filled)
        return replace(self, agent_mask=present, restarts=restarts)


def _row_valid(filled: Tensor) -> Tensor:
    import torch

    return torch.cat([filled[:, :1], filled], dim=1)  # [B, T+1]


def _dead_present(alive: Tensor, filled: Tensor) -> tuple[Tensor, Tensor]:
    """Return which agents are there if the dead are, and where the memory starts anew: both ``[B, T+1, N]`` bool."""
    restarts = alive.clone()
    restarts[:, 0] = False
    restarts[:, 1:] &= ~alive[:, :-1]
    return _row_valid(filled)[..., None].expand_as(alive).contiguous(), restarts


@dataclass
class TrajectoryBatch:
    """``B`` rows of up to ``T`` joint steps; a row is an episode or a segment of one.

    Shapes: ``obs [B, T+1, N, O]``, ``state [B, T+1, S]``, ``avail_actions [B, T+1, N, A]`` bool,
    ``agent_mask [B, T+1, N]`` bool, ``actions [B, T, N]`` int64, ``reward [B, T]``,
    ``terminated``, ``truncated`` and ``filled`` ``[B, T]`` bool. A segment also carries
    ``initial_state`` (the recurrent agent's, a tuple of ``[B, N, H]``) and ``initial_action [B, N]``
    (``-1``: none). ``extras`` holds what an algorithm declares for itself.
    """

    obs: Tensor
    state: Tensor
    avail_actions: Tensor
    agent_mask: Tensor
    actions: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    filled: Tensor
    agent_reward: Tensor | None = None
    initial_state: tuple[Tensor, ...] | None = None
    initial_action: Tensor | None = None
    extras: dict[str, Tensor] = field(default_factory=dict)
    cache: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """A cache of what several readers of this batch need and one of them has computed; a changed copy starts empty."""
    host: HostMasks | None = field(default=None, init=False, repr=False, compare=False)
    """The masks of a batch that was moved to another device; a changed copy has none, since its masks may be others."""
    restarts: Tensor | None = field(default=None, init=False, repr=False, compare=False)
    """``[B, T+1, N]`` bool, of :meth:`with_dead_present`: rows before which an agent forgets, though it was present."""
    is_masked: bool = field(default=False, init=False, repr=False, compare=False)
    """Whether it is known to be as :meth:`mask_invalid` would make it; a changed copy may not be."""

    @property
    def batch_size(self) -> int:
        return self.actions.shape[0]

    @property
    def length(self) -> int:
        return self.actions.shape[1]

    def map(self, fn: Callable[[Tensor], Tensor]) -> TrajectoryBatch:
        """Return the same batch with ``fn`` applied to every tensor."""
        values: dict[str, Any] = {}
        for f in fields(self):
            if not f.init:
                continue
            value = getattr(self, f.name)
            if isinstance(value, tuple):
                values[f.name] = tuple(fn(v) for v in value)
            elif isinstance(value, dict):
                values[f.name] = {k: fn(v) for k, v in value.items()}
            else:
                values[f.name] = None if value is None else fn(value)
        return TrajectoryBatch(**values)

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> TrajectoryBatch:
        """Return the batch on ``device``, floating fields as ``dtype``; asynchronous from page-locked memory."""
        if device.type == "cpu" and self._is_on_cpu(dtype):
            return self
        moved = self.map(
            lambda t: t.to(device, dtype if dtype and t.is_floating_point() else t.dtype, non_blocking=True)
        )
        moved.is_masked = self.is_masked
        if device.type != "cpu":
            here = self.agent_mask.device.type == "cpu" and self.filled.device.type == "cpu"
            moved.host = HostMasks(self.agent_mask, self.filled) if here else self.host
        return moved

    def _is_on_cpu(self, dtype: torch.dtype | None) -> bool:
        """Return whether every tensor is on the CPU, and every floating one is a ``dtype`` if that is given."""
        tensors = [
            *(self.obs, self.state, self.avail_actions, self.agent_mask, self.actions, self.reward, self.terminated),
            *(self.truncated, self.filled, *(self.initial_state or ()), *self.extras.values()),
            *(t for t in (self.agent_reward, self.initial_action) if t is not None),
        ]
        return all(
            t.device.type == "cpu" and (dtype is None or not t.is_floating_point() or t.dtype == dtype) for t in tensors
        )

    def row_valid(self) -> Tensor:
        """Return ``[B, T+1]`` bool: the observation rows that happened, the successor of the last step among them."""
        return _row_valid(self.filled)

    def last_actions(self) -> Tensor:
        """Return ``[B, T+1, N]`` int64: the action before each row, ``-1`` where there was none."""
        import torch

        first = self.initial_action
        if first is None:
            first = torch.full_like(self.actions[:, 0], -1)
        return torch.cat([first[:, None], self.actions], dim=1)  # [B, T+1, N]

    def mask_invalid(self, *, skip: Collection[str] = ()) -> TrajectoryBatch:
        """Return the batch with everything that has no meaning replaced by a finite constant.

        Padded steps and dead agents may hold anything, infinities and NaN included. Masking the loss
        afterwards would be too late: the gradient of ``where`` multiplies what it drops by zero,
        and zero times NaN is NaN. So the inputs are masked, once, here.

        Args:
            skip: ``obs`` or ``state``, if the caller reads them only where they have a meaning: they are the
                largest fields, and masking them is a copy.
        """
        import torch

        if self.is_masked:
            same = copy(self)
            same.cache = {}
            return same
        valid = self.row_valid()  # [B, T+1]
        alive = self.agent_mask & valid[..., None]  # [B, T+1, N]
        acting = alive[:, :-1] & self.filled[..., None]  # [B, T, N]
        no_op = torch.zeros_like(self.avail_actions)
        no_op[..., NO_OP] = True
        zero = self.obs.new_zeros(())
        masked = replace(
            self,
            obs=self.obs if "obs" in skip else torch.where(alive[..., None], self.obs, zero),
            state=self.state if "state" in skip else torch.where(valid[..., None], self.state, zero),
            avail_actions=torch.where(alive[..., None], self.avail_actions, no_op),
            agent_mask=alive,
            actions=torch.where(acting, self.actions, NO_OP),
            reward=torch.where(self.filled, self.reward, zero),
            terminated=self.terminated & self.filled,
            truncated=self.truncated & self.filled,
            agent_reward=None if self.agent_reward is None else torch.where(acting, self.agent_reward, zero),
        )
        masked.host = None if self.host is None else self.host.mask_invalid()
        return masked

    def with_dead_present(self) -> TrajectoryBatch:
        """Return a masked batch as if its dead agents were present: they see zeros, may do the no-op only, and do it.

        Their memory runs on while they are dead. One that lives again forgets, as it does where it acts.
        """
        present, restarts = _dead_present(self.agent_mask, self.filled)
        whole = replace(self, agent_mask=present)
        whole.restarts = restarts
        whole.host = None if self.host is None else self.host.with_dead_present()
        return whole

    def memory_kept(self) -> Tensor:
        """Return ``[B, T+1, N]`` bool: whether an agent's memory after a row is that before the next row."""
        import torch

        if self.restarts is None:
            return self.agent_mask
        return torch.cat([~self.restarts[:, 1:], torch.ones_like(self.restarts[:, :1])], dim=1)

    def sanitized(self, *, leave: Collection[str] = ()) -> TrajectoryBatch:
        """Return :meth:`mask_invalid` under its name of 0.1.0, which goes with 0.3.0."""
        warn_renamed("TrajectoryBatch.sanitized", "mask_invalid")
        return self.mask_invalid(skip=leave)


@dataclass(frozen=True)
class TrainBatch:
    """The input of ``training_step``: the trajectories and the run's global counters when they were sampled.

    ``episode_ids [B]`` int64 on the CPU: whose errors the data source wants back; ``None``: it does not.
    """

    trajectories: TrajectoryBatch
    env_steps: int
    episodes: int
    epsilon: float
    episode_ids: Tensor | None = None

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> TrainBatch:
        """Return the batch with its trajectories on ``device``, see :meth:`TrajectoryBatch.to`."""
        return replace(self, trajectories=self.trajectories.to(device, dtype))


@dataclass
class Episode:
    """One finished episode of ``L`` joint steps.

    Shapes: ``obs [L+1, N, O]``, ``state [L+1, S]``, ``avail_actions [L+1, N, A]``, ``agent_mask [L+1, N]``,
    ``actions [L, N]``, ``reward [L]``.
    """

    obs: Tensor
    state: Tensor
    avail_actions: Tensor
    agent_mask: Tensor
    actions: Tensor
    reward: Tensor
    terminated: bool
    truncated: bool

    @property
    def length(self) -> int:
        return self.reward.shape[0]

    def map(self, fn: Callable[[Any], Any]) -> Episode:
        """Return the same episode with ``fn`` applied to every tensor, or to what stands in a tensor's place."""
        mapped: dict[str, Any] = {
            f.name: value if isinstance(value := getattr(self, f.name), bool) else fn(value) for f in fields(self)
        }
        return Episode(**mapped)


@dataclass
class EpisodeStats:
    """Statistics of finished episodes: ``returns [n]``, ``lengths [n]`` and the environment's ``metrics[name] [n]``."""

    returns: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    metrics: dict[str, list[float]] = field(default_factory=dict)

    def add(self, episode_return: float, length: int, metrics: dict[str, float]) -> None:
        """Add one finished episode."""
        self.returns.append(episode_return)
        self.lengths.append(length)
        for name, value in metrics.items():
            self.metrics.setdefault(name, []).append(value)

    def extend(self, other: EpisodeStats) -> None:
        """Add the episodes of ``other`` behind these."""
        self.returns += other.returns
        self.lengths += other.lengths
        for name, values in other.metrics.items():
            self.metrics.setdefault(name, []).extend(values)

    def __len__(self) -> int:
        return len(self.returns)
