"""Hold on-policy data: a round of whole episodes by one published policy, learned from for some updates and dropped."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from qmix_lightning.replay.episode_replay import EpisodeReplay
from qmix_lightning.runtime import prng
from qmix_lightning.runtime.prng import Purpose
from qmix_lightning.types import Episode, TrajectoryBatch

__all__ = ["RoundStore"]


class RoundStore(EpisodeReplay):
    """A store of the episodes of one round; ``capacity`` of them are a whole one.

    With the first episode of the next round all of the last one leave, so what a batch is drawn from was collected by
    one policy.
    """

    def extend(self, episodes: Sequence[Episode]) -> list[int]:
        """Add several episodes, dropping a whole round before the next; return how many are held after each."""
        held: list[int] = []
        while len(held) < len(episodes):
            if len(self) == self.capacity:
                self.clear()
            held += super().extend(episodes[len(held) : len(held) + self.capacity - len(self)])
        return held

    def minibatch(self, size: int, update: int, *, seed: int, rank: int, pin: bool = False) -> TrajectoryBatch:
        """Return ``size`` episodes for the round's update number ``update``, counted from 0.

        ``pin`` is as for :meth:`gather`. The round is gone through in epochs, each in an order of its own, keyed by
        (seed, rank, round, epoch).

        Returns:
            The episodes; ``extras["draws"] [size, N]`` is one number in [0, 1) for each agent, the same in every epoch:
            an algorithm that needs the action that would have followed an episode's last samples it with these.
        """
        if len(self) != self.capacity or self.capacity % size:
            raise ValueError(f"cannot divide {len(self)} episodes of a round of {self.capacity} into batches of {size}")
        epoch, part = divmod(update, self.capacity // size)
        # A round is known by the id of its first episode.
        key = int(prng.derive_key(seed, rank, Purpose.ROUND, self.first_id, epoch)[0])
        order = np.random.Generator(np.random.Philox(key=key)).permutation(self.capacity)
        drawn = order[part * size : (part + 1) * size]
        batch = self.gather(self.first_id + drawn, pin=pin)
        ids = prng.derive_key(seed, rank, Purpose.LAST_ACTION, self.first_id + drawn)
        batch.extras["draws"] = torch.from_numpy(prng.uniform(ids, self.spec.n_agents))  # [B, N]
        return batch
