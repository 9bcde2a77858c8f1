"""Draw this rank's share of an update's batch, and apply the priorities that come back."""

from __future__ import annotations

import torch
from torch import Tensor

from qmix_lightning.replay.episode_replay import EpisodeReplay
from qmix_lightning.replay.on_policy import RoundStore
from qmix_lightning.replay.prioritized import PrioritizedReplay, importance_weights
from qmix_lightning.runtime import prng
from qmix_lightning.runtime.distributed import least_number
from qmix_lightning.runtime.prng import Purpose
from qmix_lightning.runtime.transfer import Fetched, pinned
from qmix_lightning.types import TrajectoryBatch

__all__ = ["ReplaySampler"]


class ReplaySampler:
    """Draws batches from a rank's replay, or goes through its round where the data is on-policy.

    Args:
        replay: this rank's shard.
        share: how many episodes of a batch are this rank's.
        seed: the run's seed.
        rank: this process's rank: ranks draw different episodes.
    """

    def __init__(self, replay: EpisodeReplay, *, share: int, seed: int, rank: int) -> None:
        self.share = share
        self._replay = replay
        self._rounds = replay if isinstance(replay, RoundStore) else None
        self._prioritized = replay if isinstance(replay, PrioritizedReplay) else None
        self._seed, self._rank = seed, rank
        self._errors: tuple[Tensor, Fetched] | None = None

    def draw(self, update: int, env_steps: int, device: torch.device) -> tuple[TrajectoryBatch, Tensor | None]:
        """Draw the ``update``-th update's batch from the replay, to learn on ``device``.

        Returns:
            The batch, and the ids of the episodes whose errors are wanted back, ``None`` where they are not.
        """
        self.apply_priorities()
        pin = device.type == "cuda"
        key = int(prng.derive_key(self._seed, self._rank, Purpose.SAMPLE, update)[0])
        ids, probabilities = self._replay.draw(self.share, key)
        batch = self._replay.gather(ids, pin=pin)
        if self._prioritized is None or probabilities is None:
            return batch, None
        least = least_number(float(probabilities.min()), device)
        weights = importance_weights(probabilities, least, self._prioritized.beta(env_steps))
        batch.extras["weight"] = pinned(weights) if pin else weights
        return batch, torch.from_numpy(ids)

    def of_round(self, update: int, epsilon: float, device: torch.device) -> TrajectoryBatch:
        """Return the ``update``-th batch, from 0, of the present round, which was played with ``epsilon``."""
        assert self._rounds is not None
        pin = device.type == "cuda"
        batch = self._rounds.minibatch(self.share, update, seed=self._seed, rank=self._rank, pin=pin)
        batch.extras["epsilon"] = torch.full((self.share,), epsilon)
        if pin:
            batch.extras = {name: pinned(values) for name, values in batch.extras.items()}
        return batch

    def whole_round(self, epsilon: float) -> TrajectoryBatch:
        """Return this rank's whole share of the present round, which was played with ``epsilon``."""
        assert self._rounds is not None
        batch = self._rounds.whole(seed=self._seed, rank=self._rank)
        batch.extras["epsilon"] = torch.full((batch.batch_size,), epsilon)
        return batch

    def update_priorities(self, episode_ids: Tensor, errors: Tensor) -> None:
        """Keep the errors ``errors [B]`` of the values of the episodes ``episode_ids [B]`` after the update on them."""
        if self._prioritized is not None:
            self.apply_priorities()
            self._errors = episode_ids, Fetched(errors.detach())

    def apply_priorities(self) -> None:
        """Apply the errors of :meth:`update_priorities` to the replay, before anything depends on the priorities.

        It is called as late as that, so that a GPU may still be computing the errors.
        """
        if self._prioritized is not None and self._errors is not None:
            (ids, errors), self._errors = self._errors, None
            self._prioritized.update_priorities(ids.numpy(), errors().double().numpy())
