"""Read checkpoints and replay segments of version 0.1.0, which have other names for some of their contents.

Contents come from a file: what has another type than it should passes through, and is refused where it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qmix_lightning.config.aliases import rename_settings

__all__ = ["upgrade_checkpoint", "upgrade_segment"]

_COUNTERS = {"owed": "updates_due", "accounted": "scheduled_until", "round_open": "partial_rollout"}
_DATA = {"pipelined": "asynchronous"}
_SEGMENT = {"living": "alive_rows", "rebuilt": "state_from_obs"}


def upgrade_checkpoint(payload: dict[str, Any]) -> dict[str, Any]:
    """Return the contents of a ``.ckpt`` under the names of today; what has them already stays as it is."""
    upgraded = dict(payload)
    if isinstance(config := payload.get("config"), Mapping):
        upgraded["config"] = rename_settings(config, silent=True)
    if isinstance(data := payload.get("ReplayDataModule"), Mapping):
        upgraded["ReplayDataModule"] = data = _renamed(data, _DATA)
        if isinstance(counters := data.get("counters"), Mapping):
            data["counters"] = _renamed(counters, _COUNTERS)
    return upgraded


def upgrade_segment(segment: Any) -> Any:
    """Return the columns of a replay segment under the names of today."""
    return _renamed(segment, _SEGMENT) if isinstance(segment, Mapping) else segment


def _renamed(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(key, key) if isinstance(key, str) else key: value for key, value in values.items()}
