"""Record the episodes in flight for the collector: one row of buffers for each environment."""

from __future__ import annotations

import logging
import zlib

import numpy as np
import torch
from torch import Tensor

from qmix_lightning.types import EnvSpec, Episode, Observation, Transition

__all__ = ["LONG_EPISODE_STEPS", "EpisodeRecorder", "warn_of_long_episode"]

_log = logging.getLogger(__name__)

LONG_EPISODE_STEPS = 8192
"""Steps of an episode without a limit after which a warning says that it may never end."""

_UNKNOWN_LIMIT_STEPS = 64
_ROW_FIELDS = ("obs", "state", "avail_actions", "agent_mask")
_STEP_FIELDS = ("actions", "reward")


class EpisodeRecorder:
    """A recorder of the episodes in flight of ``E`` environments.

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
        # On a CPU they are written through numpy, whose calls cost a third of torch's.
        on_cpu = self.device.type == "cpu"
        self._arrays = {name: t.numpy() for name, t in self._flat.items()} if on_cpu else None
        self._first = np.arange(e) * (steps + 1)  # where each environment's rows begin

    def _of(self, name: str) -> Tensor:
        """Return the field as ``[E, steps + 1, ...]``."""
        return self._flat[name].unflatten(0, (self.num_envs, -1))

    def begin(self, mask: np.ndarray, first: Observation) -> None:
        """Begin new episodes where ``mask [E]``, with the observation ``first``."""
        self.t[mask] = 0
        self.returns[mask] = 0.0
        # All rows: the others show what they showed before, and leaving them out costs more than writing them again.
        self._write_rows(first, None)

    def step(self, actions: Tensor, outcome: Transition, reward: np.ndarray, active: np.ndarray) -> None:
        """Record a joint step of the ``active [E]`` environments; ``reward [E]`` is the outcome's, on the CPU."""
        all_active = bool(active.all())
        if (self.t if all_active else self.t[active]).max(initial=0) >= self._capacity:
            self._double()
        envs = None if all_active else active.nonzero()[0]
        self._write({"actions": actions, "reward": outcome.reward}, envs)
        if envs is None:
            self.t += 1
            self.returns += reward
        else:
            self.t[envs] += 1
            self.returns[envs] += reward[envs]
        self._write_rows(outcome.next, envs)

    def _write_rows(self, observation: Observation, envs: np.ndarray | None) -> None:
        self._write({name: getattr(observation, name) for name in _ROW_FIELDS}, envs)

    def _write(self, values: dict[str, Tensor], envs: np.ndarray | None) -> None:
        """Put ``values [E, ...]`` of the environments ``envs`` (``None``: all) at their present time."""
        at = self._first + self.t
        if envs is not None:
            at = at[envs]
        if self._arrays is not None:
            for name, value in values.items():
                array = value.numpy()
                self._arrays[name][at] = array if envs is None else array[envs]
            return
        rows = torch.from_numpy(at).to(self.device)
        chosen = None if envs is None else torch.from_numpy(envs).to(self.device)
        for name, value in values.items():
            self._flat[name].index_copy_(0, rows, value if chosen is None else value.index_select(0, chosen))

    def _double(self) -> None:
        if self._capacity == LONG_EPISODE_STEPS:
            warn_of_long_episode(self.spec)
        old = {name: self._of(name) for name in self._flat}
        self._allocate(2 * self._capacity)
        for name, buffer in old.items():
            self._of(name)[:, : buffer.shape[1]] = buffer

    def episode(self, e: int, terminated: bool, truncated: bool) -> Episode:
        """Return the episode of environment ``e``, which ended: views."""
        first, length = int(self._first[e]), int(self.t[e])
        steps = {name: self._flat[name][first : first + length] for name in _STEP_FIELDS}
        rows = {name: self._flat[name][first : first + length + 1] for name in _ROW_FIELDS}
        return Episode(terminated=terminated, truncated=truncated, **steps, **rows)

    def actions_so_far(self, e: int) -> Tensor:
        """Return a copy of the actions of environment ``e``'s episode so far, on the CPU."""
        return self._of("actions")[e, : int(self.t[e])].to("cpu", copy=True)

    def checksum(self, e: int) -> int:
        """Return the CRC-32 of what was seen and earned so far, to notice an episode that plays differently."""
        t = int(self.t[e])
        crc = zlib.crc32(self._of("reward")[e, :t].numpy(force=True).tobytes())
        return zlib.crc32(self._of("obs")[e, : t + 1].numpy(force=True).tobytes(), crc)


def warn_of_long_episode(spec: EnvSpec) -> None:
    """Warn that an episode of an environment without a limit goes on and on."""
    cure = "give them a limit" if spec.natively_batched else "env.episode_limit=N truncates them after N steps"
    _log.warning(
        "an episode has taken %s steps, and the environment declares no limit: if episodes need not end, %s",
        f"{LONG_EPISODE_STEPS:,}",
        cure,
    )
