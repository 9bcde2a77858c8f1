"""What every mixer asks of its settings and inputs, refused in one way."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from qmix_lightning.mixers.qmix import POSITIVITY

__all__ = ["at_least_one", "check_inputs", "positivity_named"]


def at_least_one(**sizes: int) -> None:
    """Refuse a size below 1 by its name."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, not {size}")


def check_inputs(agent_qs: Tensor, state: Tensor, n_agents: int, state_dim: int) -> None:
    """``agent_qs [..., N]`` and ``state [..., S]`` with the same leading axes, or a ``ValueError`` with both shapes."""
    if agent_qs.shape[-1] != n_agents or state.shape != (*agent_qs.shape[:-1], state_dim):
        raise ValueError(
            f"expected agent_qs [..., {n_agents}] and state [..., {state_dim}], "
            f"got {tuple(agent_qs.shape)} and {tuple(state.shape)}"
        )


def positivity_named(name: str) -> Callable[[Tensor], Tensor]:
    """The function of ``POSITIVITY`` of this name, or a ``ValueError`` with the names there are."""
    if name not in POSITIVITY:
        raise ValueError(f"positivity must be one of {', '.join(POSITIVITY)}, not '{name}'")
    return POSITIVITY[name]
