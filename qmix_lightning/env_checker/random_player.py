"""Choose the actions of the random episodes of a check."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qmix_lightning.runtime import prng
from qmix_lightning.types import NO_OP

__all__ = ["random_actions"]


def random_actions(seed: int, step: int, legal: Sequence[np.ndarray | None]) -> list[int]:
    """Return a legal action for each agent, as a function of the episode's seed and the step.

    Args:
        seed: of the episode.
        step: joint steps taken before.
        legal: of each agent which actions are legal, ``[A]``; ``None`` for one that takes no part: its no-op.
    """
    draws = prng.uniform(prng.derive_key(seed, step), len(legal))[0]
    places = [None if mask is None else np.flatnonzero(mask) for mask in legal]
    return [NO_OP if p is None else int(p[int(d * len(p))]) for p, d in zip(places, draws, strict=True)]
