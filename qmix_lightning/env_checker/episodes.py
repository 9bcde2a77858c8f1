"""Record the random episodes of an environment check, and find where two of them differ."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

__all__ = ["Difference", "RandomEpisode", "Snapshot", "Step", "difference"]


ROW_FIELDS = ("obs", "state", "avail_actions", "agent_mask")


@dataclass(frozen=True)
class Snapshot:
    """Record of what one environment shows before a joint step.

    ``digest``: checksums of observation, state, legal actions and mask; ``agents``: of each agent's observation.
    ``obs`` and ``state`` are flat samples.
    """

    digest: tuple[int, int, int, int]
    agents: tuple[int, ...]
    obs: np.ndarray
    state: np.ndarray
    avail: np.ndarray
    mask: np.ndarray

    def legal(self) -> list[np.ndarray | None]:
        """Return of each agent which actions are legal, ``[A]``; ``None`` of one that is not alive."""
        return [avail if alive else None for avail, alive in zip(self.avail, self.mask, strict=True)]


@dataclass(frozen=True)
class Step:
    """Record of a joint step and its results."""

    actions: tuple[int, ...]
    reward: float
    terminated: bool
    truncated: bool
    agent_reward: tuple[float, ...] | None
    metrics: tuple[tuple[str, float], ...]


@dataclass
class RandomEpisode:
    """Record of one random episode; it has one row more than steps."""

    seed: int
    slot: int
    rows: list[Snapshot] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    @property
    def terminated(self) -> bool:
        return bool(self.steps) and self.steps[-1].terminated

    @property
    def truncated(self) -> bool:
        return bool(self.steps) and self.steps[-1].truncated

    @property
    def ended(self) -> bool:
        return self.terminated or self.truncated


# Comparing -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """The first place where two records of one episode differ.

    ``size``: how far apart, relative. ``only_state``: everything else is still the same there. ``at_end``: it is what
    the last step left behind.
    """

    text: str
    size: float
    only_state: bool = False
    at_end: bool = False

    def __str__(self) -> str:
        return self.text


def difference(one: RandomEpisode, other: RandomEpisode) -> Difference | None:
    """Return where the common beginning of two records differs, if it does."""
    for t in range(min(len(one.rows), len(other.rows))):
        if t > 0 and (found := _step_difference(one.steps[t - 1], other.steps[t - 1], t)):
            return found
        a, b = one.rows[t], other.rows[t]
        changed = [name for name, x, y in zip(ROW_FIELDS, a.digest, b.digest, strict=True) if x != y]
        if not changed:
            continue
        at_end = t > 0 and t == len(one.rows) - 1 and one.ended
        name = changed[0]
        size, values = float("inf"), ""
        if name in ("obs", "state"):
            x, y = (a.obs, b.obs) if name == "obs" else (a.state, b.state)
            apart = np.abs(x.astype(np.float64) - y) / (1.0 + np.abs(x))
            where = int(np.nanargmax(apart)) if np.isfinite(apart).any() else 0
            size = float(apart[where]) if len(apart) else 0.0
            values = f" ({x[where]:.6g}, then {y[where]:.6g})" if size > 0.0 else ""
        place = "the first observation" if t == 0 else f"step {t}"
        return Difference(f"{FIELD_WORDS[name]} differs at {place}{values}", size, changed == ["state"], at_end)
    return None


FIELD_WORDS = {
    "obs": "the observation",
    "state": "the state",
    "avail_actions": "the mask of legal actions",
    "agent_mask": "who is alive",
}


def _step_difference(one: Step, other: Step, t: int) -> Difference | None:
    for name, word in (
        ("actions", "the legal actions"),
        ("reward", "the reward"),
        ("terminated", "termination"),
        ("truncated", "truncation"),
        ("agent_reward", "the reward of an agent"),
        ("metrics", "an episode metric"),
    ):
        a, b = getattr(one, name), getattr(other, name)
        if a != b:
            size = abs(a - b) / (1.0 + abs(a)) if name == "reward" else float("inf")
            return Difference(f"{word} differs at step {t} ({a}, then {b})", size)
    return None
