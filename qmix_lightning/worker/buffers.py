"""Define the buffers that single environments write and a vector environment shows: one row for each environment."""

from __future__ import annotations

import mmap
from dataclasses import dataclass

import numpy as np

from qmix_lightning.types import EnvSpec

__all__ = ["Buffers", "Row", "SharedBuffers"]


@dataclass
class Buffers:
    """Arrays that ``E`` environments write in place, one for each field; they start as zeros.

    Shapes: ``obs [E, N, O]``, ``state [E, S]``, ``agent_reward [E, N]``, ``reward [E]`` and ``metrics [M, E]``
    float32; ``avail_actions [E, N, A]``, ``agent_mask [E, N]``, ``terminated [E]`` and ``truncated [E]`` bool.
    """

    obs: np.ndarray
    state: np.ndarray
    avail_actions: np.ndarray
    agent_mask: np.ndarray
    agent_reward: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    metrics: np.ndarray

    @staticmethod
    def layout(spec: EnvSpec, num_envs: int) -> dict[str, tuple[tuple[int, ...], type]]:
        """Return the shape and dtype of each field."""
        e, n = num_envs, spec.n_agents
        return {
            "obs": ((e, n, spec.obs_dim), np.float32),
            "state": ((e, spec.state_dim), np.float32),
            "avail_actions": ((e, n, spec.n_actions), np.bool_),
            "agent_mask": ((e, n), np.bool_),
            "agent_reward": ((e, n), np.float32),
            "reward": ((e,), np.float32),
            "terminated": ((e,), np.bool_),
            "truncated": ((e,), np.bool_),
            "metrics": ((len(spec.episode_metrics), e), np.float32),
        }

    @classmethod
    def zeros(cls, spec: EnvSpec, num_envs: int) -> Buffers:
        return cls(**{k: np.zeros(shape, dtype) for k, (shape, dtype) in cls.layout(spec, num_envs).items()})

    def clear_outcome(self, rows: np.ndarray | list[int]) -> None:
        """Let ``rows`` earn nothing and go on: no step was taken there, or it failed."""
        self.reward[rows], self.terminated[rows], self.truncated[rows] = 0.0, False, False

    def row(self, spec: EnvSpec, index: int) -> Row:
        """Return the views that environment ``index`` writes."""
        return Row(
            spec, self.obs[index], self.state[index], self.avail_actions[index], self.agent_mask[index],
            self.agent_reward[index],
        )  # fmt: skip


class Row:
    """Views of one environment's buffers, which must start as zeros.

    Shapes: ``obs [N, O]``, ``state [S]``, ``agent_reward [N]`` float32; ``avail_actions [N, A]``, ``agent_mask [N]``
    bool. ``agent_obs`` and ``agent_avail`` are each agent's part without padding.
    """

    __slots__ = ("agent_avail", "agent_mask", "agent_obs", "agent_reward", "avail_actions", "obs", "state")

    def __init__(
        self,
        spec: EnvSpec,
        obs: np.ndarray,
        state: np.ndarray,
        avail_actions: np.ndarray,
        agent_mask: np.ndarray,
        agent_reward: np.ndarray,
    ) -> None:
        self.obs = obs
        self.state = state
        self.avail_actions = avail_actions
        self.agent_mask = agent_mask
        self.agent_reward = agent_reward
        self.agent_obs = [obs[i, :size] for i, size in enumerate(spec.obs_dims)]
        self.agent_avail = [avail_actions[i, :count] for i, count in enumerate(spec.action_counts)]


class SharedBuffers:
    """:class:`Buffers` and what goes the other way, laid out in one piece of shared memory.

    ``actions [E, N]`` and ``seeds [E]`` int64; ``wanted [E]`` and ``failed [E]`` bool.
    """

    def __init__(self, spec: EnvSpec, num_envs: int, mapping: mmap.mmap | None) -> None:
        layout = Buffers.layout(spec, num_envs)
        extra: dict[str, tuple[tuple[int, ...], type]] = {
            "actions": ((num_envs, spec.n_agents), np.int64),
            "seeds": ((num_envs,), np.int64),
            "wanted": ((num_envs,), np.bool_),
            "failed": ((num_envs,), np.bool_),
        }
        self.nbytes = 0
        arrays: dict[str, np.ndarray] = {}
        for name, (shape, dtype) in {**layout, **extra}.items():
            count = int(np.prod(shape))
            if mapping is not None:
                arrays[name] = np.frombuffer(mapping, dtype, count, self.nbytes).reshape(shape)
            self.nbytes += -(-count * np.dtype(dtype).itemsize // 64) * 64
        if mapping is not None:
            self.buffers = Buffers(**{name: arrays[name] for name in layout})
            self.actions, self.seeds = arrays["actions"], arrays["seeds"]
            self.wanted, self.failed = arrays["wanted"], arrays["failed"]
