"""Encode steps as bytes, and floats in fewer of them: exact but for the chosen dtype."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qmix_lightning.errors import RunError
from qmix_lightning.types import NO_OP, EnvSpec

__all__ = ["DTYPES", "JoinedState", "StepLayout", "Steps", "host_dtype", "narrow", "obs_dtype"]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""The dtypes in which observations and states can be stored."""

_TOO_LARGE = 65520.0
"""The least number that float16 rounds to infinity."""


@dataclass
class Steps:
    """``K`` decoded steps.

    Shapes: ``reward [K]``, ``actions [K, N]``, ``agent_mask [K, N]``, ``avail_actions [K, N, A]``.
    """

    reward: NDArray[np.float32]
    actions: NDArray[np.int64]
    agent_mask: NDArray[np.bool_]
    avail_actions: NDArray[np.bool_]


class StepLayout:
    """The layout of a step in ``width`` bytes: reward in float32, an action of each agent, and one bit for each mask.

    Args:
        n_agents: ``N``.
        n_actions: ``A``.
    """

    def __init__(self, n_agents: int, n_actions: int) -> None:
        self.n_agents = n_agents
        self.n_actions = n_actions
        self.action_dtype = np.dtype("u1" if n_actions <= 2**8 else "<u2" if n_actions <= 2**16 else "<i4")
        self._bits = n_agents * (1 + n_actions)
        self._actions = slice(4, 4 + n_agents * self.action_dtype.itemsize)
        self.width = self._actions.stop + (self._bits + 7) // 8

    def encode(self, steps: Steps) -> NDArray[np.uint8]:
        """Return the steps as bytes, ``[K, width]``."""
        k = len(steps.reward)
        encoded = np.empty((k, self.width), np.uint8)
        encoded[:, :4] = steps.reward.astype("<f4")[:, None].view(np.uint8)
        encoded[:, self._actions] = np.ascontiguousarray(steps.actions.astype(self.action_dtype)).view(np.uint8)
        bits = np.concatenate([steps.agent_mask, steps.avail_actions.reshape(k, -1)], axis=1)  # [K, N + N*A]
        encoded[:, self._actions.stop :] = np.packbits(bits, axis=1)
        return encoded

    def decode(self, encoded: NDArray[np.uint8]) -> Steps:
        """Return the steps of ``encoded [K, width]``."""
        k, n = len(encoded), self.n_agents
        bits = np.unpackbits(encoded[:, self._actions.stop :], axis=1, count=self._bits).view(np.bool_)
        return Steps(
            reward=np.ascontiguousarray(encoded[:, :4]).view("<f4")[:, 0].astype(np.float32),
            actions=np.ascontiguousarray(encoded[:, self._actions]).view(self.action_dtype).astype(np.int64),
            agent_mask=np.ascontiguousarray(bits[:, :n]),
            avail_actions=np.ascontiguousarray(bits[:, n:]).reshape(k, n, self.n_actions),
        )

    def padding_row(self) -> NDArray[np.uint8]:
        """Return the bytes of a step that never happened, ``[width]``: nobody is there, and only the no-op is legal."""
        n = self.n_agents
        legal = np.zeros((1, n, self.n_actions), np.bool_)
        legal[..., NO_OP] = True
        nobody = np.zeros((1, n), np.bool_)
        return self.encode(Steps(np.zeros(1, np.float32), np.zeros((1, n), np.int64), nobody, legal))[0]


class JoinedState:
    """States that are the agents' observations, one after the other without padding (or empty): computed, not stored.

    Args:
        spec: sizes of the environment.
    """

    def __init__(self, spec: EnvSpec) -> None:
        self._dims = spec.obs_dims
        self._size = spec.state_dim
        self._even = len(set(spec.obs_dims)) == 1 and spec.obs_dims[0] == spec.obs_dim
        self._possible = spec.state_dim in (0, sum(spec.obs_dims))

    def of(self, obs: Tensor) -> Tensor:
        """Return the state ``[..., S]`` of ``obs [..., N, O]``."""
        if self._even:
            return obs.flatten(-2)[..., : self._size]
        return torch.cat([obs[..., i, :size] for i, size in enumerate(self._dims)], dim=-1)[..., : self._size]

    def equal_rows(self, state: NDArray[np.float32], obs: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return which rows of ``state [K, S]`` :meth:`of` makes of ``obs [K, N, O]``, bit for bit: ``[K]``."""
        if not self._possible:
            return np.zeros(len(state), np.bool_)
        joined = np.ascontiguousarray(self.of(torch.from_numpy(obs)).numpy())
        same = joined.view(np.int32) == np.ascontiguousarray(state).view(np.int32)
        return same.all(axis=1)


def obs_dtype(spec: EnvSpec, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which observations are stored: bytes as bytes, all others as asked for."""
    return torch.uint8 if spec.obs_dtype == "uint8" else dtype


def host_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """Return how numpy, which has no bfloat16, holds numbers of ``dtype``."""
    return np.dtype({torch.float32: np.float32, torch.uint8: np.uint8}.get(dtype, np.int16))


def narrow(values: NDArray[np.float32], dtype: torch.dtype) -> NDArray[Any]:
    """Return ``values`` rounded to ``dtype``; numpy has no bfloat16, so 16 bits are held as ``int16``.

    Raises:
        RunError: a number is too large for ``float16``.
    """
    values = np.ascontiguousarray(values)
    if dtype == torch.float32:
        return values
    if dtype == torch.uint8:
        return values.astype(np.uint8)
    if dtype == torch.float16 and values.size and not (values.max() < _TOO_LARGE and values.min() > -_TOO_LARGE):
        finite = values[np.isfinite(values)]
        worst = finite[np.abs(finite).argmax()] if finite.size else 0.0
        if abs(worst) >= _TOO_LARGE:
            raise RunError(
                f"an observation or a state holds {worst:.6g}, too large for float16 (65504): "
                "set replay.dtype=bfloat16 or float32"
            )
    return torch.from_numpy(values).to(dtype).view(torch.int16).numpy()
