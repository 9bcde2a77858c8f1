"""Count what a run has done and what is due; checkpoints hold these counters."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["FIRST_EPISODES", "Counters"]

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
    round_start: int = 0
    partial_rollout: bool = False
    faults: dict[str, int] = field(default_factory=dict)
    window: dict[str, float] = field(default_factory=dict)
    first_episodes: dict[str, float] = field(default_factory=dict)
