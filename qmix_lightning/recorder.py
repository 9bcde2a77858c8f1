"""What the collector writes down: the episodes in flight, one row of buffers for each environment."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor

from qmix_lightning.replay import Episode
from qmix_lightning.types import EnvSpec, Observation, Transition

__all__ = ["EpisodeRecorder"]

_UNKNOWN_LIMIT_STEPS = 64
_ROWS = ("obs", "state", "avail_actions", "agent_mask")
_STEPS = ("actions", "reward")


class EpisodeRecorder:
    """The episodes in flight of ``E`` environments.

    Every field is one tensor ``[E * (steps + 1), ...]``, so that a joint step, in which every environment is at another
    time, is one index for all fields.

    Attributes:
        t: steps taken of each environment's episode, ``[E]``.
        returns: their rewards so far, ``[E]``.
    """

    def __init__(self, spec: EnvSpec, num_envs: int, device: torch.device) -> None:
        self.spec = spec
        self.num_envs = num_envs
        self.device = device
        self.t = np.zeros(num_envs, np.int64)
        self.returns = np.zeros(num_envs)
        self._allocate(spec.episode_limit or _UNKNOWN_LIMIT_STEPS)

    def _allocate(self, steps: int) -> None:
        e, n, s = self.num_envs, self.spec.n_agents, self.spec
        self._capacity = steps
        rows = e * (steps + 1)
        made = {
            "obs": torch.zeros(rows, n, s.obs_dim),
            "state": torch.zeros(rows, s.state_dim),
            "avail_actions": torch.zeros(rows, n, s.n_actions, dtype=torch.bool),
            "agent_mask": torch.zeros(rows, n, dtype=torch.bool),
            "actions": torch.zeros(rows, n, dtype=torch.int64),
            "reward": torch.zeros(rows),
        }
        self._flat = {name: t.to(self.device) for name, t in made.items()}
        self._first = np.arange(e) * (steps + 1)  # where each environment's rows begin

    def _of(self, name: str) -> Tensor:
        """``[E, steps + 1, ...]``."""
        return self._flat[name].unflatten(0, (self.num_envs, -1))

    def begin(self, mask: np.ndarray, first: Observation) -> None:
        """New episodes where ``mask [E]``, which begin with ``first``."""
        self.t[mask] = 0
        self.returns[mask] = 0.0
        # All rows: the others show what they showed before, and leaving them out costs more than writing them again.
        self._write_rows(first, None)

    def step(self, actions: Tensor, outcome: Transition, reward: np.ndarray, active: np.ndarray) -> None:
        """A joint step of the ``active [E]`` environments; ``reward [E]`` is the outcome's, on the CPU."""
        if self.t.max(where=active, initial=0) >= self._capacity:
            self._double()
        envs = self._only(active)
        at = self._at(envs)
        self._put("actions", actions, at, envs)
        self._put("reward", outcome.reward, at, envs)
        self.t += active
        self.returns[active] += reward[active]
        self._write_rows(outcome.next, envs)

    def _only(self, mask: np.ndarray) -> Tensor | None:
        """The numbers of the environments in ``mask [E]``; ``None`` if those are all."""
        return None if mask.all() else torch.from_numpy(mask.nonzero()[0]).to(self.device)

    def _at(self, envs: Tensor | None) -> Tensor:
        """The row of the present time of each of ``envs``."""
        at = torch.from_numpy(self._first + self.t).to(self.device)
        return at if envs is None else at[envs]

    def _write_rows(self, observation: Observation, envs: Tensor | None) -> None:
        at = self._at(envs)
        for name in _ROWS:
            self._put(name, getattr(observation, name), at, envs)

    def _put(self, name: str, values: Tensor, at: Tensor, envs: Tensor | None) -> None:
        self._flat[name].index_copy_(0, at, values if envs is None else values.index_select(0, envs))

    def _double(self) -> None:
        old = {name: self._of(name) for name in self._flat}
        self._allocate(2 * self._capacity)
        for name, buffer in old.items():
            self._of(name)[:, : buffer.shape[1]] = buffer

    def episode(self, e: int, terminated: bool, truncated: bool) -> Episode:
        """The episode of environment ``e``, which ended: views."""
        first, length = int(self._first[e]), int(self.t[e])
        steps = {name: self._flat[name][first : first + length] for name in _STEPS}
        rows = {name: self._flat[name][first : first + length + 1] for name in _ROWS}
        return Episode(terminated=terminated, truncated=truncated, **steps, **rows)

    def actions_so_far(self, e: int) -> Tensor:
        return self._of("actions")[e, : int(self.t[e])].to("cpu", copy=True)

    def checksum(self, e: int) -> int:
        """CRC-32 of what was seen and earned so far, to notice an episode that plays differently."""
        t = int(self.t[e])
        crc = zlib.crc32(self._of("reward")[e, :t].numpy(force=True).tobytes())
        return zlib.crc32(self._of("obs")[e, : t + 1].numpy(force=True).tobytes(), crc)
