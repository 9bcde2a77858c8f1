"""Say what the contents of a checkpoint are, and check that they mean something before a run goes on from them.

Checksums say that a file is as it was written, not by whom: whoever makes one up makes up its sums as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qmix_lightning.errors import CheckpointError
from qmix_lightning.runtime.text import on_one_line

__all__ = ["Manifest", "RunMetadata", "check_manifest", "not_finite"]

_MOST_THREADS = 1024
_MOST_EVAL_ENVS = 4096
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass
class RunMetadata:
    """What a checkpoint says about its run, beside the state of it.

    Attributes:
        config: what of the run's configuration a file may decide.
        spec: of the environment, as plain containers.
        world_size: ranks.
        device: kind of device that it is trained on.
        versions: of what decides a result to the last bit.
        num_threads: intra-op threads; ``None`` until they are chosen, and of a checkpoint of 0.1.0.
    """

    config: dict[str, Any]
    spec: dict[str, Any]
    world_size: int
    device: str
    versions: dict[str, str]
    num_threads: int | None = None

    def to_payload(self) -> dict[str, Any]:
        """Return the entries of a checkpoint."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class Manifest:
    """A checkpoint that a run can go on from.

    Attributes:
        run: what it says about its run.
        env_steps: taken.
        updates: done.
        networks: the LightningModule's tensors by name.
        asynchronous: whether its rollouts are.
        payload: all of its contents, as Lightning restores them.
    """

    run: RunMetadata
    env_steps: int
    updates: int
    networks: dict[str, Any]
    asynchronous: bool
    payload: dict[str, Any]


def check_manifest(payload: dict[str, Any], path: Path) -> Manifest:
    """Check counters, ranks, segments and networks of a checkpoint that a run is to go on from.

    Raises:
        CheckpointError: they are made up, or hold NaN; the message names the first.
    """
    try:
        problem = _problem(payload)
        manifest = Manifest(
            run=RunMetadata(
                config=payload["config"],
                spec=payload["spec"],
                world_size=payload["world_size"],
                device=payload["device"],
                versions=payload.get("versions", {}),
                num_threads=payload.get("num_threads"),
            ),
            env_steps=payload["env_steps"],
            updates=payload["global_step"],
            networks=payload["state_dict"],
            asynchronous=payload["ReplayDataModule"].get("asynchronous", False),
            payload=payload,
        )
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        problem = f"its contents are not those of a run ({type(error).__name__}: {error})"
        raise CheckpointError(f"{path} cannot be resumed: {on_one_line(problem)}") from error
    if problem is not None:
        raise CheckpointError(f"{path} cannot be resumed: {on_one_line(problem)}")
    return manifest


def not_finite(tensors: Mapping[str, Any]) -> list[str]:
    """Return the names of tensors that hold NaN or infinity."""
    floats = {name: t for name, t in tensors.items() if isinstance(t, Tensor) and t.is_floating_point()}
    return [name for name, tensor in floats.items() if not torch.isfinite(tensor).all()]


def _problem(payload: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a checkpoint's contents, if anything is; made-up ones may raise anything."""
    for key in ("global_step", "env_steps", "world_size"):
        if not _is_count(payload[key]):
            return f"its {key} is not a count"
    if not isinstance(payload["spec"], Mapping):
        return "it does not say what its environment is like"
    if wrong := not_finite(payload["state_dict"]):
        return f"its networks hold NaN or infinity ({wrong[0]} and {len(wrong) - 1} more): the run had diverged"
    for threads in (payload.get("num_threads") or 1, payload["config"].get("num_threads") or 1):
        if not _is_count(threads) or not 1 <= threads <= _MOST_THREADS:
            return "its num_threads is not a number of threads"
    data = payload["ReplayDataModule"]
    if data["counters"]["updates"] != payload["global_step"]:
        return f"it counts {data['counters']['updates']} updates and {payload['global_step']}"
    if data["counters"]["env_steps"] != payload["env_steps"]:
        return f"it counts {data['counters']['env_steps']} environment steps and {payload['env_steps']}"
    ranks = data["ranks"]
    if not isinstance(ranks, list) or len(ranks) != payload["world_size"]:
        return f"it does not hold the data of its {payload['world_size']} rank(s)"
    rollout = payload["config"]["rollout"]
    if rollout.get("num_eval_envs", 1) > max(_MOST_EVAL_ENVS, rollout["num_envs"]):
        return f"its rollout.num_eval_envs of {rollout['num_eval_envs']} is more than a file decides"
    for rank in ranks:
        problem = _segments_problem(rank["replay"], rank["next_id"])
        if problem is None and rank["collector"] is not None:
            problem = _collector_problem(rank["collector"], rollout["num_envs"])
        if problem is not None:
            return problem
    return None


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _segments_problem(segments: list[dict[str, Any]], next_id: int) -> str | None:
    """Return what is wrong with the segments of a rank: they hold consecutive ids, up to the next one."""
    if not _is_count(next_id):
        return "the number of its episodes is not a count"
    known = None
    for segment in segments:
        first, last, oldest = (segment[key] for key in ("first_id", "last_id", "oldest_id"))
        if not (_is_count(first) and _is_count(last) and _is_count(oldest)) or not first < last:
            return "a replay segment's episodes are not counted"
        if not _SHA256.fullmatch(segment["sha256"]) or (known is not None and first != known):
            return "its replay segments do not follow each other"
        known = last
    if segments and known != next_id:
        return f"its replay segments end at episode {known}, and its replay at {next_id}"
    return None


def _collector_problem(state: Mapping[str, Any], num_envs: object) -> str | None:
    """Return what is wrong with the episodes in flight: there is one for each environment."""
    held = {len(state[key]) for key in ("episode", "ended", "actions", "checksums", "last_action")}
    if held != {num_envs} or not _is_count(num_envs):
        return f"it holds episodes in flight of {max(held)} environments, and rollout.num_envs is {num_envs}"
    if state["ended"].dtype != torch.bool or bool((state["episode"] < 0).any()):
        return "its episodes in flight are not counted"
    return None
