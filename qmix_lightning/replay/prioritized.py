"""Draw whole episodes by priority: prioritised replay (Schaul et al. 2016, the proportional variant).

An episode's error is what the learner makes of its steps' errors (Kapturowski et al. 2019, section 2.3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qmix_lightning.errors import RunError
from qmix_lightning.replay.episode_replay import EpisodeReplay
from qmix_lightning.types import EnvSpec

__all__ = ["PrioritizedReplay", "SumTree", "importance_weights"]

_LEAST_ERROR = 1e-6
"""Added to every error, so that no episode is lost for ever (Schaul et al. 2016, section 3.3)."""


class SumTree:
    """A tree of the sums of ``size`` numbers by halves, in which one is found in logarithmic time.

    Every sum is recomputed from its two parts, so the tree depends on its leaves and not on how they came about.
    """

    def __init__(self, size: int) -> None:
        self._leaves = 1 << max(0, size - 1).bit_length()
        self._nodes = np.zeros(2 * self._leaves)  # node i has the parts 2i and 2i+1; the leaves are the second half

    @property
    def total(self) -> float:
        return float(self._nodes[1])

    @property
    def nbytes(self) -> int:
        return self._nodes.nbytes

    def __getitem__(self, index: NDArray[np.int64]) -> NDArray[np.float64]:
        return self._nodes[self._leaves + index]

    def set(self, index: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        """Give the numbers at ``index [K]`` the ``values [K]``."""
        node = self._leaves + index
        self._nodes[node] = values
        while len(node) and node[0] > 1:
            node = np.unique(node >> 1)
            self._nodes[node] = self._nodes[2 * node] + self._nodes[2 * node + 1]

    def find(self, mass: NDArray[np.float64]) -> NDArray[np.int64]:
        """Find for each of ``mass [K]`` in [0, total) the first index at which the sum up to it is larger, ``[K]``."""
        node, mass = np.ones(len(mass), np.int64), mass.copy()
        while node.size and node[0] < self._leaves:
            left, right = self._nodes[2 * node], self._nodes[2 * node + 1]
            # By rounding, mass may be left over where nothing is on the right.
            go_right = (mass >= left) & (right > 0.0)
            mass = np.where(go_right, mass - left, mass)
            node = 2 * node + go_right
        return node - self._leaves


class PrioritizedReplay(EpisodeReplay):
    """An episode store that draws by priority: ``P(i) = p_i^alpha / sum_k p_k^alpha`` (eq. 1).

    A new episode gets the largest priority given so far (Algorithm 1, line 6). A batch is stratified: the total is
    split into as many equal parts as there are rows, and each part gives one (appendix B.2.1), so an episode may be
    drawn twice.

    Args:
        spec: sizes of the environment.
        capacity: episodes to hold; the oldest leaves first.
        alpha: 0 is uniform, 1 in proportion to the error.
        beta: exponent of the importance weights when the run begins.
        beta_anneal_steps: environment steps over which it rises to 1, linearly; ``None``: it stays.
        dtype: see :class:`EpisodeReplay`.
        folder: see :class:`EpisodeReplay`.
        device: see :class:`EpisodeReplay`.
    """

    def __init__(
        self,
        spec: EnvSpec,
        capacity: int,
        *,
        alpha: float,
        beta: float,
        beta_anneal_steps: int | None,
        dtype: str = "float32",
        folder: Path | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(spec, capacity, dtype=dtype, folder=folder, device=device)
        self.alpha = alpha
        self._beta = beta
        self._beta_anneal_steps = beta_anneal_steps
        self._priorities = np.zeros(capacity)  # of episode id at id modulo the capacity
        self._tree = SumTree(capacity)
        self.largest = 1.0

    def nbytes(self) -> int:
        return super().nbytes() + self._priorities.nbytes + self._tree.nbytes

    def beta(self, env_steps: int) -> float:
        """Return the exponent of the importance weights after so many environment steps of the run."""
        if self._beta_anneal_steps is None:
            return self._beta
        done = min(1.0, env_steps / self._beta_anneal_steps) if self._beta_anneal_steps else 1.0
        return self._beta + done * (1.0 - self._beta)

    def clear(self) -> None:
        place = np.arange(self.first_id, self.next_id) % self.capacity
        self._priorities[place] = 0.0
        self._tree.set(place, np.zeros(len(self)))  # not by a power: 0 to the power of 0 is 1
        super().clear()

    def _added(self, ids: NDArray[np.int64]) -> None:
        self._set(ids, np.full(len(ids), self.largest))

    def _set(self, ids: NDArray[np.int64], priorities: NDArray[np.float64]) -> None:
        place = ids % self.capacity
        self._priorities[place] = priorities
        self._tree.set(place, priorities**self.alpha)

    def draw(self, batch_size: int, key: int) -> tuple[NDArray[np.int64], NDArray[np.float64] | None]:
        """Draw ids of ``batch_size`` episodes by priority, as a pure function of ``key``, priorities and what is held.

        Returns:
            The ids ``[B]``, and ``P(i)`` of each.
        """
        if not len(self):
            raise ValueError(f"cannot draw {batch_size} episodes from none")
        rng = np.random.Generator(np.random.Philox(key=key))
        part = (np.arange(batch_size) + rng.random(batch_size)) / batch_size
        place = self._tree.find(part * self._tree.total)
        ids = self.first_id + (place - self.first_id) % self.capacity
        return ids, self._tree[place] / self._tree.total

    def priorities(self, ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the priorities of the episodes of ``ids``, which are held."""
        return self._priorities[ids % self.capacity]

    def update_priorities(self, ids: NDArray[np.int64], errors: NDArray[np.float64]) -> None:
        """Set new priorities for the episodes of ``ids [B]``; those that have left meanwhile are passed over.

        Args:
            ids: an id may be there twice; its larger error counts.
            errors: how wrong each one's values were, not negative. One that is not finite counts as the largest so
                far: it must not reach the sums, and a loss that is not finite ends the run by itself.
        """
        priorities = np.where(np.isfinite(errors), errors + _LEAST_ERROR, self.largest)
        held = (ids >= self.first_id) & (ids < self.next_id)
        ids, priorities = ids[held], priorities[held]
        if not len(ids):
            return
        self.largest = max(self.largest, float(priorities.max()))
        unique, inverse = np.unique(ids, return_inverse=True)
        merged = np.zeros(len(unique))
        np.maximum.at(merged, inverse, priorities)
        self._set(unique, merged)

    # -- between processes ---------------------------------------------------------------------------------------

    def saved_beside(self) -> dict[str, Any]:
        """Return the priorities of what is held, from the oldest on, and the largest ever given."""
        held = torch.from_numpy(self.priorities(np.arange(self.first_id, self.next_id)))
        return super().saved_beside() | {"priorities": {"priorities": held, "largest": self.largest}}

    def restore_beside(self, saved: Mapping[str, Any], round_extras: Sequence[str]) -> None:
        priorities, largest = saved["priorities"]["priorities"], saved["priorities"]["largest"]
        if not isinstance(priorities, Tensor) or len(priorities) != len(self):
            raise RunError(f"the checkpoint does not hold the priorities of its {len(self)} episodes")
        self.largest = float(largest)
        self._set(np.arange(self.first_id, self.next_id), priorities.numpy())


def importance_weights(probabilities: NDArray[np.float64], least: float, beta: float) -> Tensor:
    """Return ``[B]`` float32: ``w_i = (n P(i))^-beta / max_j w_j`` (Schaul et al. 2016, section 3.4).

    The number of episodes ``n`` cancels, so the largest weight is that of the least probability.

    Args:
        probabilities: with which each row was drawn, ``[B]``.
        least: the smallest of the whole batch: of every rank's rows.
        beta: 0: no correction; 1: full.
    """
    return torch.from_numpy((least / probabilities) ** beta).float()
