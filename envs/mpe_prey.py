"""Act as the prey of MPE's ``simple_tag``, by a rule: ``env.opponents=qmix_lightning.envs.mpe_prey:flee``."""

from __future__ import annotations

import numpy as np

__all__ = ["flee"]

_MOVES = np.array([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]])  # none, left, right, down, up
_STEP = 0.2  # how far ahead it looks
_BORDER = 0.9  # beyond it the scenario takes from the prey's reward


def flee(agent: str, observation: np.ndarray, action_mask: np.ndarray, rng: np.random.Generator) -> int:
    """Return the move after which the nearest predator is furthest, inside the field.

    Args:
        agent: the prey's name.
        observation: what it sees with 3 predators and 2 obstacles, which are the scenario's defaults: its velocity and
            place, the obstacles, and the predators relative to itself.
        action_mask: not looked at: all moves are legal.
        rng: not drawn from.
    """
    place, predators = observation[2:4], observation[8:14].reshape(3, 2)
    after = _STEP * _MOVES
    nearest = np.linalg.norm(predators - after[:, None], axis=2).min(1)
    outside = (np.abs(place + after) - _BORDER).clip(0).sum(1)
    return int((nearest - 10 * outside).argmax())
