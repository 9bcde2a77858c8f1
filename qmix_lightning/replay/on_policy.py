"""Hold on-policy data: a round of whole episodes by one published policy, learned from for some updates and dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qmix_lightning.errors import RunError
from qmix_lightning.replay.episode_replay import EpisodeReplay
from qmix_lightning.runtime import prng
from qmix_lightning.runtime.prng import Purpose
from qmix_lightning.types import Episode, TrajectoryBatch

__all__ = ["RoundStore"]


class RoundStore(EpisodeReplay):
    """A store of the episodes of one round; ``capacity`` of them are a whole one.

    With the first episode of the next round all of the last one leave, so what a batch is drawn from was collected by
    one policy.

    Attributes:
        extras: what the algorithm has computed of the round, ``[capacity, T, ...]`` each: a row for each episode. It
            leaves with them.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.extras: dict[str, Tensor] = {}

    def clear(self) -> None:
        super().clear()
        self.extras = {}

    def extend(self, episodes: Sequence[Episode]) -> list[int]:
        """Add several episodes, dropping a whole round before the next; return how many are held after each."""
        held: list[int] = []
        while len(held) < len(episodes):
            if len(self) == self.capacity:
                self.clear()
            held += super().extend(episodes[len(held) : len(held) + self.capacity - len(self)])
        return held

    def whole(self, *, seed: int, rank: int) -> TrajectoryBatch:
        """Return all episodes of the round, in the order of :attr:`extras`, with their draws."""
        return self._batch(np.arange(self.capacity), seed=seed, rank=rank, pin=False)

    def minibatch(self, size: int, update: int, *, seed: int, rank: int, pin: bool = False) -> TrajectoryBatch:
        """Return ``size`` episodes for the round's update number ``update``, counted from 0.

        ``pin`` is as for :meth:`gather`. The round is gone through in epochs, each in an order of its own, keyed by
        (seed, rank, round, epoch).

        Returns:
            The episodes; ``extras["draws"] [size, N]`` is one number in [0, 1) for each agent, the same in every epoch:
            an algorithm that needs the action that would have followed an episode's last samples it with these. What
            :attr:`extras` holds of these episodes is there too.
        """
        if len(self) != self.capacity or self.capacity % size:
            raise ValueError(f"cannot divide {len(self)} episodes of a round of {self.capacity} into batches of {size}")
        epoch, part = divmod(update, self.capacity // size)
        # A round is known by the id of its first episode.
        key = int(prng.derive_key(seed, rank, Purpose.ROUND, self.first_id, epoch)[0])
        order = np.random.Generator(np.random.Philox(key=key)).permutation(self.capacity)
        drawn = order[part * size : (part + 1) * size]
        return self._batch(drawn, seed=seed, rank=rank, pin=pin)

    def _batch(self, rows: NDArray[np.int64], *, seed: int, rank: int, pin: bool) -> TrajectoryBatch:
        """Return the episodes ``rows [B]`` of the round, counted from its first."""
        batch = self.gather(self.first_id + rows, pin=pin)
        ids = prng.derive_key(seed, rank, Purpose.LAST_ACTION, self.first_id + rows)
        batch.extras["draws"] = torch.from_numpy(prng.uniform(ids, self.spec.n_agents))  # [B, N]
        chosen = torch.from_numpy(rows)
        batch.extras |= {name: values[chosen, : batch.length] for name, values in self.extras.items()}
        return batch

    def saved_beside(self) -> dict[str, Any]:
        return super().saved_beside() | {"round": self.extras}

    def restore_beside(self, saved: Mapping[str, Any], round_extras: Sequence[str]) -> None:
        """Take over what :attr:`extras` was in the checkpoint of a run, all of ``round_extras`` or nothing at all."""
        extras: Mapping[str, Tensor] = saved.get("round", {})
        if extras and set(extras) != set(round_extras):
            names = ", ".join(sorted(round_extras))
            raise RunError(f"the checkpoint's round has {', '.join(sorted(extras))}, not {names}")
        longest = self.whole(seed=0, rank=0).length if extras else 0
        for name, values in extras.items():
            if len(self) != self.capacity or tuple(values.shape[:2]) != (self.capacity, longest):
                raise RunError(f"the checkpoint's {name} are {tuple(values.shape)}: not those of the round it holds")
        self.extras = dict(extras)
