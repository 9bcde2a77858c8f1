"""Call mixers with the inputs that they ask for, and check their settings and inputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qmix_lightning.action_selection import chosen_values, greedy_values
from qmix_lightning.runtime.transfer import sent, true_positions
from qmix_lightning.types import TrajectoryBatch

__all__ = ["POSITIVITY", "MixerCall", "Positivity", "at_least_one", "check_inputs", "positivity_named"]


Positivity = Literal["abs", "softplus", "square", "exp"]

POSITIVITY: dict[Positivity, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "softplus": F.softplus,
    "square": torch.square,
    "exp": torch.exp,
}
"""How a mixing weight is kept from being negative; the paper takes the absolute value."""


class MixerCall:
    """Calls a mixer with the inputs that it asks for.

    These are ``agent_qs`` and ``state``, and by keyword any of

    * ``greedy_qs [B, T, N]``: the value of each agent's greedy legal action by the same network,
    * ``actions [B, T, N]`` int64,
    * ``obs [B, T, N, O]``,
    * ``agent_mask [B, T, N]`` bool.

    An agent that ``batch.agent_mask`` leaves out has the value zero: it adds nothing to the team's value. Where dead
    agents count, they are present in the batch (``ValueSettings.dead_agents``).
    """

    OPTIONAL = ("greedy_qs", "actions", "obs", "agent_mask")

    def __init__(self, mixer: nn.Module) -> None:
        names = inspect.signature(mixer.forward).parameters
        self.wants = tuple(name for name in self.OPTIONAL if name in names)

    def __call__(self, mixer: nn.Module, q: Tensor, actions: Tensor, batch: TrajectoryBatch, rows: slice) -> Tensor:
        """Mix ``q [B, T+1, N, A]`` of ``actions [B, T, N]`` in the rows ``rows`` of ``batch`` to ``[B, T]``.

        Rows are those of observations. Zero at steps that did not happen. ``q`` may also be that of ``rows`` alone,
        ``[B, T, N, A]``.
        """
        alive = batch.agent_mask[:, rows]
        picked = _picked(q, actions, rows)
        q = q if q.shape[1] == actions.shape[1] else q[:, rows]
        zero = q.new_zeros(())
        given = {"actions": actions, "agent_mask": alive}
        if "greedy_qs" in self.wants:
            given["greedy_qs"] = greedy_values(q, q, batch.avail_actions[:, rows]).where(alive, zero)
        if "obs" in self.wants:
            given["obs"] = batch.obs[:, rows]
        given["agent_qs"] = picked.where(alive, zero)  # [B, T, N]
        # Mixing knows no time: the steps that happened are given as the steps of one long row.
        steps = _filled_steps(batch)  # [F]
        observed = steps + steps.div(batch.length, rounding_mode="floor") + (rows.start or 0)  # rows of [B, T+1]
        names = ("agent_qs", *self.wants)
        filled_args = {name: given[name].flatten(0, 1).index_select(0, steps)[None] for name in names}  # [1, F, N, ...]
        state = batch.state.flatten(0, 1).index_select(0, observed)[None]  # [1, F, S]
        mixed = mixer(filled_args.pop("agent_qs"), state, **filled_args).to(q.dtype)[0]  # [F] or [F, N]
        b, t = batch.filled.shape
        return mixed.new_zeros(b * t, *mixed.shape[1:]).index_copy(0, steps, mixed).unflatten(0, (b, t))


def _picked(q: Tensor, actions: Tensor, rows: slice) -> Tensor:
    """Return the values of ``actions [B, T, N]`` in observation rows ``rows`` of ``q``, or in a ``q`` of those alone.

    Gathered from the whole: the gradient of a part of ``q`` is copied once more, into zeros of the whole's size.
    """
    if q.shape[1] == actions.shape[1]:
        return chosen_values(q, actions)
    before = rows.start or 0
    padded = F.pad(actions, (0, 0, before, q.shape[1] - actions.shape[1] - before))  # [B, T+1, N]
    return chosen_values(q, padded)[:, rows]


def _filled_steps(batch: TrajectoryBatch) -> Tensor:
    """Return the steps that happened, ``[F]`` positions in the flattened ``[B, T]``."""
    if "filled_steps" not in batch.cache:
        steps = true_positions(batch.filled if batch.host is None else batch.host.filled)
        batch.cache["filled_steps"] = sent(steps, batch.filled.device)
    return batch.cache["filled_steps"]


def at_least_one(**sizes: int) -> None:
    """Check that sizes are at least 1; raise a ``ValueError`` with the name of one that is not."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, not {size}")


def check_inputs(agent_qs: Tensor, state: Tensor, n_agents: int, state_dim: int) -> None:
    """Check that ``agent_qs [..., N]`` and ``state [..., S]`` have the same leading axes.

    Raises:
        ValueError: with both shapes, if not.
    """
    if agent_qs.shape[-1] != n_agents or state.shape != (*agent_qs.shape[:-1], state_dim):
        raise ValueError(
            f"expected agent_qs [..., {n_agents}] and state [..., {state_dim}], "
            f"got {tuple(agent_qs.shape)} and {tuple(state.shape)}"
        )


def positivity_named(name: Positivity) -> Callable[[Tensor], Tensor]:
    """Return the function of ``POSITIVITY`` of this name, or raise a ``ValueError`` with the names there are."""
    if name not in POSITIVITY:
        raise ValueError(f"positivity must be one of {', '.join(POSITIVITY)}, not '{name}'")
    return POSITIVITY[name]
