"""Define one-step games by a payoff table, with the three that show what monotonic mixing cannot represent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from qmix_lightning.envs.tabular import TabularEnv
from qmix_lightning.errors import ConfigurationError
from qmix_lightning.runtime.text import did_you_mean

__all__ = ["Matrix"]

DEFAULT_PENALTY_K = -100.0
LARGEST_PAYOFF = torch.finfo(torch.float32).max


class Matrix(TabularEnv):
    """One-step game of ``N`` agents, who act at the same time and are paid what the table says.

    Observation and state: ``[1.0]``.

    Args:
        num_envs: games that step together, ``E``.
        preset: ``climbing``, ``penalty`` or ``qtran``; or else
        payoff: nested list ``[A_1][..][A_N]`` of numbers. Agents may have different action counts.
        penalty_k: what the ``penalty`` game pays for miscoordination.

    Raises:
        ConfigurationError: not exactly one of ``preset`` and ``payoff``, or the table is ragged, empty or not numeric.
    """

    def __init__(
        self,
        *,
        num_envs: int,
        preset: str | None = None,
        payoff: list[Any] | None = None,
        penalty_k: float = DEFAULT_PENALTY_K,
    ) -> None:
        presets = {
            "climbing": [[11.0, -30.0, 0.0], [-30.0, 7.0, 6.0], [0.0, 0.0, 5.0]],
            "penalty": [[penalty_k, 0.0, 10.0], [0.0, 2.0, 0.0], [10.0, 0.0, penalty_k]],
            "qtran": [[8.0, -12.0, -12.0], [-12.0, 0.0, 0.0], [-12.0, 0.0, 0.0]],
        }
        if (preset is None) == (payoff is None):
            given = "neither" if preset is None else "both"
            raise ConfigurationError(
                f"a matrix game needs either preset or payoff, {given} given: env.preset={'|'.join(presets)}, or a "
                "table such as env.payoff=[[1,0],[0,2]]"
            )
        if penalty_k != DEFAULT_PENALTY_K and preset != "penalty":
            raise ConfigurationError("penalty_k belongs to preset 'penalty' only")
        if preset is not None and preset not in presets:
            raise ConfigurationError(f"unknown matrix game preset '{preset}'{did_you_mean(preset, presets)}")
        table = payoff if preset is None else presets[preset]
        shape = _shape_of(table, "payoff")
        if not shape:
            raise ConfigurationError(f"payoff must be a nested list of numbers, not {table!r}")
        values = torch.tensor(_as_lists(table), dtype=torch.float32)[None]  # [1, A_1, .., A_N]
        super().__init__(
            num_envs=num_envs,
            labels=("1",),
            payoff=values,
            successor=torch.ones_like(values, dtype=torch.int64),
        )


def _shape_of(table: Any, where: str) -> tuple[int, ...]:
    """Return the shape of a nested list of finite numbers; ``where`` names it in messages."""
    if isinstance(table, Sequence) and not isinstance(table, str):
        if len(table) == 0:
            raise ConfigurationError(f"{where} is empty; every agent needs at least one action")
        shapes = [_shape_of(entry, f"{where}[{i}]") for i, entry in enumerate(table)]
        for i, shape in enumerate(shapes):
            if shape != shapes[0]:
                raise ConfigurationError(
                    f"{where} is ragged: {where}[0] has shape {list(shapes[0])}, {where}[{i}] has {list(shape)}"
                )
        return (len(table), *shapes[0])
    if isinstance(table, bool) or not isinstance(table, int | float) or not abs(table) <= LARGEST_PAYOFF:
        raise ConfigurationError(f"{where} must be a finite 32-bit number, not {table!r}")
    return ()


def _as_lists(table: Any) -> Any:
    return [_as_lists(entry) for entry in table] if isinstance(table, Sequence) else table
