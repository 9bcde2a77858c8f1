"""One PettingZoo-style environment behind an adapter, played by tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qmix_lightning.worker.buffers import Buffers
from qmix_lightning.worker.parallel_adapter import Outcome, ParallelAdapter

CONF = Path(__file__).parents[2] / "conf" / "env"


class Player:
    """An environment, its adapter, and the row that it writes."""

    def __init__(self, env: Any, seed: int = 0, **settings: Any) -> None:
        self.env = env
        self.adapter = ParallelAdapter(env, name="played", **settings)
        self.spec = self.adapter.spec
        self.row = Buffers.zeros(self.spec, 1).row(self.spec, 0)
        self.rng = np.random.default_rng(seed)

    def reset(self, seed: Any = 0) -> Player:
        self.adapter.reset(seed, self.row)
        return self

    def choose(self) -> list[int]:
        """A legal action for each slot, at random."""
        return [int(self.rng.choice(np.flatnonzero(legal))) for legal in self.row.avail_actions]

    def step(self, *actions: int) -> Outcome:
        return self.adapter.step(actions or self.choose(), self.row)

    def episode(self, seed: int = 0, actions: Sequence[int] = (), limit: int = 5000) -> tuple[int, Outcome, float]:
        """Random legal play, or always the same actions, to the end: steps, how it ended, and the return."""
        self.reset(seed)
        total = 0.0
        for t in range(1, limit + 1):
            outcome = self.step(*actions)
            total += outcome.reward
            assert np.isfinite(self.row.obs).all()
            assert np.isfinite(self.row.state).all()
            if outcome.terminated or outcome.truncated:
                return t, outcome, total
        raise AssertionError("no end")
