"""Check that the episodes of a replay segment are episodes of this environment: a file may hold anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qmix_lightning.errors import CheckpointError
from qmix_lightning.replay.layout import StepLayout, host_dtype
from qmix_lightning.types import EnvSpec

__all__ = ["check_segment"]

_COLUMNS = {
    "lengths": torch.int64,
    "alive_rows": torch.int64,
    "state_from_obs": torch.bool,
    "terminated": torch.bool,
    "truncated": torch.bool,
}
_ROWS_AT_A_TIME = 1 << 16


def check_segment(
    segment: Mapping[str, Any], spec: EnvSpec, layout: StepLayout, dtypes: Mapping[str, torch.dtype]
) -> None:
    """Check a segment's columns against each other and against the environment.

    Args:
        segment: as it was read.
        spec: of the environment.
        layout: of a step.
        dtypes: of ``obs`` and ``state``, as they are stored.

    Raises:
        CheckpointError: it is of another store, or made up.
    """
    problem = _problem(segment, spec, layout, dtypes)
    if problem is not None:
        raise CheckpointError(f"a replay segment {problem}")


def _problem(
    segment: Mapping[str, Any], spec: EnvSpec, layout: StepLayout, dtypes: Mapping[str, torch.dtype]
) -> str | None:
    widths = {"steps": layout.width, "obs": spec.obs_dim, "state": spec.state_dim}
    for name, width in widths.items():
        rows = segment.get(name)
        wanted = np.dtype(np.uint8) if name == "steps" else host_dtype(dtypes[name])
        if not isinstance(rows, Tensor) or rows.shape[1:] != (width,) or rows.numpy().dtype != wanted:
            return f"has other '{name}' than this run's layout"
    columns = {name: segment.get(name) for name in _COLUMNS}
    for name, column in columns.items():
        if not isinstance(column, Tensor) or column.dtype != _COLUMNS[name] or column.shape != segment["lengths"].shape:
            return f"has no column '{name}' of one number an episode"
    lengths, alive_rows = segment["lengths"].numpy(), segment["alive_rows"].numpy()
    if lengths.ndim != 1 or not len(lengths) or lengths.min() < 1 or lengths.max() > (spec.episode_limit or 2**40):
        return "holds episodes of lengths that this environment does not have"
    rows = lengths + 1
    if int(rows.sum()) != len(segment["steps"]):
        return f"holds {len(segment['steps'])} steps for episodes of {int(rows.sum())}"
    if int(rows[~segment["state_from_obs"].numpy()].sum()) != len(segment["state"]):
        return f"holds {len(segment['state'])} states, which are not its episodes'"
    return _rows_problem(segment, layout, rows, alive_rows) or _floats_problem(segment, dtypes)


def _rows_problem(
    segment: Mapping[str, Tensor], layout: StepLayout, rows: NDArray[np.int64], alive_rows: NDArray[np.int64]
) -> str | None:
    """Return what is wrong with the steps: actions were legal, rewards numbers, and as many agents alive as it says."""
    ends = np.cumsum(rows)
    encoded = segment["steps"].numpy()
    alive = np.zeros(len(encoded), np.int64)
    for start in range(0, len(encoded), _ROWS_AT_A_TIME):
        part = slice(start, start + _ROWS_AT_A_TIME)
        steps = layout.decode(encoded[part])
        alive[part] = steps.agent_mask.sum(1)
        acting = ~np.isin(np.arange(start, start + len(steps.reward)), ends - 1)
        actions, legal = steps.actions[acting], steps.avail_actions[acting]
        if actions.size and (actions.min() < 0 or actions.max() >= layout.n_actions):
            return "holds actions that this environment does not have"
        if not np.take_along_axis(legal, actions[..., None], -1).all():
            return "holds actions that were not legal"
        if not np.isfinite(steps.reward).all():
            return "holds rewards that are not finite"
    if not np.array_equal(np.add.reduceat(alive, ends - rows), alive_rows) or int(alive.sum()) != len(segment["obs"]):
        return "holds another number of observations than agents that live"
    return None


def _floats_problem(segment: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]) -> str | None:
    for name, dtype in dtypes.items():
        for part in segment[name].view(dtype).split(_ROWS_AT_A_TIME):
            if not part.isfinite().all():
                return f"holds '{name}' that are not finite"
    return None
