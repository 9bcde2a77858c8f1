"""Count what a run has done and what is due; checkpoints hold these counters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from qmix_lightning.errors import CheckpointError, RunError
from qmix_lightning.training.schedules import UpdateSchedule
from qmix_lightning.types import EnvSpec
from qmix_lightning.worker.fault_tolerance import FAULT_KINDS

__all__ = ["FIRST_EPISODES", "Counters", "budget_too_small"]

FIRST_EPISODES = 64


@dataclass
class Counters:
    """Counters of a run, global over ranks.

    Attributes:
        env_steps: joint steps taken.
        episodes: episodes finished.
        updates: optimiser steps done.
        updates_due: updates due now and not done yet.
        scheduled_until: the schedule's counter up to which updates have been counted as due.
        evaluation_pending: the epoch's last update is done and its evaluation is not.
        evaluated_at: environment steps at the last evaluation.
        updated_at: environment steps when the last update's batch was drawn.
        round_start: environment steps when the present round of collecting began; epsilon is held for a round.
            On-policy, a round ends with the last update on its episodes.
        partial_rollout: the present round was interrupted; its rest is played by the policy that began it.
        faults: faults of environments, by kind.
        window: sums over training episodes since they were last logged.
        first_episodes: sums over the first :data:`FIRST_EPISODES` or so training episodes, played by a team that has
            learned nothing: what random play earns.
    """

    env_steps: int = 0
    episodes: int = 0
    updates: int = 0
    updates_due: int = 0
    scheduled_until: int = 0
    evaluation_pending: bool = False
    evaluated_at: int = 0
    updated_at: int = 0
    round_start: int = 0
    partial_rollout: bool = False
    faults: dict[str, int] = field(default_factory=dict)
    window: dict[str, float] = field(default_factory=dict)
    first_episodes: dict[str, float] = field(default_factory=dict)

    def count_due(self, schedule: UpdateSchedule, *, ready: bool, episodes_before: int, short: int) -> None:
        """Count the updates that have become due with what was collected last.

        Args:
            schedule: when updates are due.
            ready: the replay holds a batch now.
            episodes_before: finished before it.
            short: the episodes of it after which the replay held no batch yet.
        """
        by_episode = schedule.unit == "episodes"
        now = self.episodes if by_episode else self.env_steps
        if not ready:
            self.scheduled_until = now
            return
        # No update is due for the episodes that still filled the first batch, except for the one that completed it.
        floor = episodes_before + short if by_episode else self.scheduled_until
        before = max(self.scheduled_until, floor)
        # Steps of a dropped episode are taken back, so the counter may fall; no update is due twice.
        self.updates_due += schedule.updates_due(before, max(before, now))
        self.scheduled_until = max(before, now)

    def count_faults(self, numbers: Sequence[float]) -> None:
        """Add numbers of faults, one for each of ``FAULT_KINDS``."""
        for kind, number in zip(FAULT_KINDS, numbers, strict=True):
            if number:
                self.faults[kind] = self.faults.get(kind, 0) + int(number)

    def window_means(self) -> dict[str, float]:
        """Return means over the episodes of :attr:`window`; none if there were none."""
        count = self.window.get("episodes", 0.0)
        return {name: value / count for name, value in self.window.items() if name != "episodes"} if count else {}

    def pop_window(self) -> dict[str, float]:
        """Return means over the episodes of :attr:`window`, and empty it."""
        means, self.window = self.window_means(), {}
        return means

    def add_first_episodes(self, episodes: float, total_return: float, squared_returns: float) -> None:
        """Add to :attr:`first_episodes` what so many episodes returned together, and their squares."""
        for name, value in (("episodes", episodes), ("return", total_return), ("squares", squared_returns)):
            self.first_episodes[name] = self.first_episodes.get(name, 0.0) + value

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Counters:
        """Return the counters that a checkpoint holds.

        Raises:
            CheckpointError: they are not those of a run.
        """
        saved = {**saved, "updated_at": saved.get("updated_at", saved.get("env_steps", 0))}  # 0.1.0 kept none
        counts = {f.name for f in fields(cls) if f.type == "int"}
        flags = {f.name for f in fields(cls) if f.type == "bool"}
        for name, value in saved.items():
            is_flag = isinstance(value, bool)
            is_count = isinstance(value, int) and not is_flag and 0 <= value < 2**53
            if (name in counts and not is_count) or (name in flags and not is_flag):
                raise CheckpointError(f"the checkpoint counts {name} as {value!r}")
        for name in ("faults", "window", "first_episodes"):
            numbers = saved.get(name, {})
            if not isinstance(numbers, dict) or not all(
                isinstance(key, str) and isinstance(n, int | float) and math.isfinite(n) for key, n in numbers.items()
            ):
                raise CheckpointError(f"the checkpoint's {name} are not numbers")
        try:
            return cls(**saved)
        except TypeError as error:
            raise CheckpointError(f"the checkpoint's counters are not those of a run: {error}") from error


def budget_too_small(budget: int, episodes: int, batch_size: int | None, spec: EnvSpec) -> RunError:
    """Return the error of a run whose budget ended before its first update.

    Args:
        budget: in environment steps.
        episodes: how many have ended.
        batch_size: of which there are too few; ``None``: there are enough, and no update fell due.
        spec: of the environment.
    """
    if not episodes:
        if spec.episode_limit is not None:
            cure = f", which may take {spec.episode_limit:,} steps: raise total_env_steps"
        elif spec.natively_batched:  # whether it has a setting for it is its own affair
            cure = ", and the environment declares no limit: give its episodes one, or raise total_env_steps"
        else:
            cure = (
                ", and the environment declares no limit: set env.episode_limit to truncate episodes, or raise "
                "total_env_steps"
            )
        return RunError(f"the budget of {budget} environment steps ended before any episode did{cure}")
    missing = "an update fell due" if batch_size is None else f"a batch of {batch_size} could be drawn"
    setting = "rollout.update_every" if batch_size is None else "replay.batch_size"
    return RunError(
        f"the budget of {budget} environment steps ended after {episodes} episodes, before {missing}: raise "
        f"total_env_steps or lower {setting}"
    )
