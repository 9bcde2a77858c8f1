"""Schedule updates and epsilon over environment steps and episodes."""

from __future__ import annotations

__all__ = ["EpsilonSchedule", "UpdateSchedule"]


class UpdateSchedule:
    """Schedule of ``updates`` optimiser steps for every ``every`` episodes or environment steps.

    Counters are global. No update is due for what was collected before the replay could fill a batch: PyMARL's rule,
    an update for each episode once there are enough.

    Args:
        every: how many units between updates.
        unit: ``episodes`` or ``env_steps``.
        updates: optimiser steps each time.
    """

    def __init__(self, *, every: int, unit: str, updates: int) -> None:
        if every < 1 or updates < 1:
            raise ValueError(f"every and updates must be at least 1, got {every} and {updates}")
        if unit not in ("episodes", "env_steps"):
            raise ValueError(f"unit must be 'episodes' or 'env_steps', not '{unit}'")
        self.every = every
        self.unit = unit
        self.updates = updates

    def updates_due(self, before: int, now: int) -> int:
        """Return how many updates fall due between two readings of the counter."""
        return (now // self.every - before // self.every) * self.updates

    def steps_to_next(self, env_steps: int) -> int | None:
        """Return the environment steps until an update is due, ``None`` when episodes are counted."""
        return self.every - env_steps % self.every if self.unit == "env_steps" else None

    def episodes_to_next(self, episodes: int) -> int:
        """Return the episodes until an update is due; only where episodes are counted."""
        return self.every - episodes % self.every


class EpsilonSchedule:
    """Epsilon: linear from ``start`` to ``finish`` over the first ``anneal_steps`` environment steps, then constant.

    PyMARL's default is 1 to 0.05 over 50,000. Environment steps are joint steps summed over ranks.
    """

    def __init__(self, start: float, finish: float, anneal_steps: int) -> None:
        self.start = start
        self.finish = finish
        self.anneal_steps = anneal_steps

    def __call__(self, env_steps: int) -> float:
        if self.anneal_steps <= 0:
            return self.finish
        fraction = min(1.0, env_steps / self.anneal_steps)
        return self.start + (self.finish - self.start) * fraction
