"""Compute how a learner's mixer values an episode, and how much it listens to each agent."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from qmix_lightning.algorithms.base import Learner
from qmix_lightning.mixers.base import MixerCall
from qmix_lightning.rendering.recorder import TeamValues
from qmix_lightning.types import TrajectoryBatch

__all__ = ["mixing_of", "team_values"]


def mixing_of(learner: Learner | None) -> TeamValues | None:
    """Return the function that values episodes by the mixer of ``learner``; ``None`` if it has none."""
    if learner is None or not isinstance(getattr(learner, "mix", None), MixerCall):
        return None
    return partial(team_values, learner)


def team_values(learner: Learner, batch: TrajectoryBatch) -> tuple[Tensor, Tensor] | None:
    """Return ``Q_tot`` of the actions taken and its derivative by each agent's value of its action.

    Dead agents count as they do in the learner's loss.

    Args:
        learner: with ``mixer``, ``mix`` and ``masked``, as the value learners have them.
        batch: one episode, ``[1, T]``.

    Returns:
        ``q_tot [1, T]`` in the scale of returns and ``sensitivities [1, T, N]``, those of what the mixer gives; or
        ``None`` if the mixer leaves every agent a value of its own.
    """
    parts: object = learner
    masked, mix, mixer = (getattr(parts, name) for name in ("masked", "mix", "mixer"))
    batch = masked(batch)
    before = slice(0, -1)
    with torch.no_grad():
        q = learner.policy.unroll(batch)[:, before]  # [1, T, N, A]
    with torch.enable_grad():
        q = q.detach().requires_grad_()
        mixed = mix(mixer, q, batch.actions, batch, before)
        if mixed.dim() != 2:
            return None
        (slopes,) = torch.autograd.grad(mixed.sum(), q)  # a step's value depends on that step alone
    taken = slopes.gather(-1, batch.actions[..., None]).squeeze(-1)  # [1, T, N]
    unscaled = getattr(parts, "unscaled", lambda values: values)
    return unscaled(mixed.detach()), taken.where(batch.agent_mask[:, before], 0.0)
