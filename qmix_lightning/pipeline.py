"""Collecting the next round while an update runs.

The round that will buy the next update is begun when the batch of this one is drawn, by the policy as it was before
this update, and is taken in before anything else happens after it. So the data is never more than one update stale,
what is collected does not depend on how fast the threads were, and between two updates nothing is under way: a
checkpoint there is as whole as without.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields, replace
from typing import Any

from torch import Tensor

from qmix_lightning.errors import EnvironmentFault
from qmix_lightning.replay import Episode
from qmix_lightning.rollout import Collected, EpisodeStats

__all__ = ["RoundAhead"]


class RoundAhead:
    """One round of collecting, in a thread of its own."""

    def __init__(self) -> None:
        self._threads: ThreadPoolExecutor | None = None
        self._round: Future[tuple[Collected, EnvironmentFault | None]] | None = None

    def begin(self, collect: Callable[[int | None], Collected], *, steps: int | None, episodes: int | None) -> None:
        """Start a round of so many joint steps or episodes of this rank, whichever is given.

        Args:
            collect: collects a part of the round, of no more than so many joint steps.
            steps: ``None`` if episodes are counted.
            episodes: ``None`` if steps are counted.
        """
        assert self._round is None, "a round is under way already"
        if self._threads is None:
            self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="collector")
        self._round = self._threads.submit(_whole_round, collect, steps, episodes)

    def result(self) -> tuple[Collected, EnvironmentFault | None] | None:
        """What the round brought, when it is over; ``None`` if none was begun."""
        if self._round is None:
            return None
        future, self._round = self._round, None
        return future.result()

    def close(self) -> None:
        """Wait for the thread to end."""
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)
            self._threads, self._round = None, None


def _whole_round(
    collect: Callable[[int | None], Collected], steps: int | None, episodes: int | None
) -> tuple[Collected, EnvironmentFault | None]:
    total = Collected(0, [], EpisodeStats())
    while total.env_steps < (steps or 0) or len(total.episodes) < (episodes or 0):
        try:
            part = collect(None if steps is None else steps - total.env_steps)
        except EnvironmentFault as error:
            return replace(total, cut=True), error
        total.env_steps += part.env_steps
        # The collector reuses the memory of what it returned.
        total.episodes.extend(_copied(episode) for episode in part.episodes)
        total.stats.extend(part.stats)
        if part.cut:
            return replace(total, cut=True), None
    return total, None


def _copied(episode: Episode) -> Episode:
    values = {f.name: getattr(episode, f.name) for f in fields(episode)}
    copied: dict[str, Any] = {name: v.clone() if isinstance(v, Tensor) else v for name, v in values.items()}
    return Episode(**copied)
