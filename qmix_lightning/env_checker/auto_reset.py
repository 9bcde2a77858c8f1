"""Detect auto-reset: an episode that ends with the first observation of another one instead of its true last.

A simulator that resets itself overwrites the successor of the last step. Nothing in a single row shows it; over some
episodes it shows, since a first observation is unlike what comes later.
"""

from __future__ import annotations

import numpy as np

from qmix_lightning.env_checker.episodes import RandomEpisode, Snapshot
from qmix_lightning.env_checker.report import CheckReport

__all__ = ["detect_auto_reset"]


def detect_auto_reset(episodes: list[RandomEpisode], check_report: CheckReport) -> None:
    """Record a failure if the last rows of episodes look like first rows."""
    # One step says nothing, and neither does an environment that always looks the same.
    telling = [e for e in episodes if e.ended and any(not _alike(row, e.rows[0], e) for row in e.rows[1:-1])]
    truncated = [e for e in telling if e.truncated]
    for suspects, judge in (
        (telling, _starts_anew),
        (telling, _shows_the_next),
        (truncated, _looks_fresh),
        (truncated, _jumps),
    ):
        if len(suspects) >= 2 and (reason := judge(suspects, episodes)):
            e = suspects[0]
            check_report.fail(
                "auto-reset",
                "reset",
                f"step {len(e.steps)}, slot {e.slot} (seed {e.seed}): {reason} in all {len(suspects)} episodes looked "
                "at; step must return the true successor and never reset",
            )
            return


def _alike(one: Snapshot, other: Snapshot, e: RandomEpisode) -> bool:
    """Return whether two rows show the same, in the state and to those who saw the end of ``e``."""
    seen = np.flatnonzero(e.rows[-1].mask)
    return one.digest[1] == other.digest[1] and all(one.agents[i] == other.agents[i] for i in seen)


def _starts_anew(ended: list[RandomEpisode], episodes: list[RandomEpisode]) -> str | None:
    if all(_alike(e.rows[-1], e.rows[0], e) for e in ended):
        return "the last observation is the episode's first one again"
    return None


def _shows_the_next(ended: list[RandomEpisode], episodes: list[RandomEpisode]) -> str | None:
    followed = []
    for e in ended:
        later = [other for other in episodes[episodes.index(e) + 1 :] if other.slot == e.slot]
        if later:
            followed.append(_alike(e.rows[-1], later[0].rows[0], e))
    if len(followed) >= 2 and all(followed):
        return "the last observation is the first one of the next episode"
    return None


def _values(e: RandomEpisode) -> np.ndarray:
    """Return observation and state of every row, ``[T+1, F]``."""
    return np.stack([np.concatenate([row.obs, row.state]) for row in e.rows])


def _looks_fresh(truncated: list[RandomEpisode], episodes: list[RandomEpisode]) -> str | None:
    """Report values that every episode starts with and none shows later (a clock, a speed of zero), back at the end."""
    first = np.stack([np.concatenate([e.rows[0].obs, e.rows[0].state]) for e in episodes])
    fresh = first[0]
    telling = (first == fresh).all(axis=0)
    for e in truncated:
        telling &= (_values(e)[1:-1] != fresh).all(axis=0)
    if len(truncated) >= 3 and telling.any() and all((_values(e)[-1] == fresh)[telling].all() for e in truncated):
        return "the last observation has what only first ones have"
    return None


def _jumps(truncated: list[RandomEpisode], episodes: list[RandomEpisode]) -> str | None:
    """Report a last step unlike the ones before it, since a time limit changes nothing in the world."""
    if len(truncated) < 3 or min(len(e.steps) for e in truncated) < 5:
        return None
    for e in truncated:
        moves = np.abs(np.diff(_values(e), axis=0))  # [T, F]
        usual = moves[:-1].max(axis=0)
        moving = usual > 0.0
        if not moving.any() or (moves[-1] > 3.0 * usual)[moving].mean() < 0.5:
            return None
    return "the last step jumps at least three times as far as any before it"
