"""Collect the next round while an update runs: in a thread, or in the collector's process.

The round that makes the next update due is begun right before the batch of this one is drawn, by the policy as it was
before this update, and its episodes are stored before anything else happens after it. So the data is never more than
one update stale, what is collected does not depend on how fast the threads were, and between two updates nothing is
under way: a checkpoint there is as complete as without a background collector.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from qmix_lightning.errors import EnvironmentFault
from qmix_lightning.rollout.collector import Collected
from qmix_lightning.rollout.collectors import RolloutCollector
from qmix_lightning.rollout.process_collector import RemoteCollector

__all__ = ["BackgroundCollector"]


Round = tuple[Collected, EnvironmentFault | None]


class BackgroundCollector:
    """Collects one round at a time: in the collector's process, else by a thread, which may wait for Ray actors."""

    def __init__(self) -> None:
        self._threads: ThreadPoolExecutor | None = None
        self._wait: Callable[[], Round] | None = None

    def begin(
        self,
        collector: RolloutCollector,
        epsilon: float,
        *,
        steps: int | None,
        episodes: int | None,
    ) -> None:
        """Start a round of this rank: of so many joint steps or episodes, whichever is given.

        A signal does not cut it: the row and the evaluation of the update beside it tell where the whole round ends,
        and epsilon is the same in all of it.
        """
        assert self._wait is None, "a round is under way already"
        if isinstance(collector, RemoteCollector):
            self._wait = collector.submit_round(epsilon, steps=steps, episodes=episodes)
            return
        if self._threads is None:
            self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="collector")
        self._wait = self._threads.submit(collector.collect_round, epsilon, steps=steps, episodes=episodes).result

    def result(self) -> Round | None:
        """Wait for the round and return what it brought; ``None`` if none was begun."""
        if self._wait is None:
            return None
        wait, self._wait = self._wait, None
        return wait()

    def close(self) -> None:
        """Wait for the thread to end."""
        self._wait = None
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)
            self._threads = None
