"""Predict how many bytes the replay will take, in host memory or on disk, before the run starts."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from qmix_lightning.errors import ConfigurationError
from qmix_lightning.replay.layout import DTYPES, StepLayout, obs_dtype
from qmix_lightning.runtime.text import shown_size
from qmix_lightning.types import EnvSpec

__all__ = ["ReplaySize", "available_memory", "predict_size"]

_RECORD_BYTES = 56
_PRIORITY_BYTES = 40
"""The priority, and two to four numbers of the tree of sums."""


@dataclass(frozen=True)
class ReplaySize:
    """The bytes of a full replay, over all ranks of one machine.

    Attributes:
        what: which replay this is about, in words.
        most: bytes if every episode has full length and nobody dies.
        half: bytes if episodes end half-way.
        room: bytes that the machine has for it; ``None`` if that is not known.
        folder: where it lies on disk; ``None``: in host memory.
        ways_out: what makes it smaller.
        floats: of ``most``, the bytes of observations and states.
        floats_half: of ``half``.
    """

    what: str
    most: int
    half: int
    room: int | None
    folder: Path | None
    ways_out: str
    floats: int = 0
    floats_half: int = 0

    def without_floats(self) -> ReplaySize:
        """Return what is left of it in host memory when observations and states are on a device."""
        return replace(self, most=self.most - self.floats, half=self.half - self.floats_half)

    def __str__(self) -> str:
        place = "free" if self.folder is None else f"free on disk at {self.folder}"
        room = "" if self.room is None else f"; {shown_size(self.room)} {place}"
        return (
            f"replay: {self.what}: at most {shown_size(self.most)}, {shown_size(self.half)} if they end half-way{room}"
        )

    def check(self) -> None:
        """Refuse a replay that may not fit.

        Raises:
            ConfigurationError: says what is needed, what there is, and what to change.
        """
        if self.room is not None and self.most > self.room:
            where = "this machine has free" if self.folder is None else f"the disk at {self.folder} has free"
            raise ConfigurationError(
                f"the replay may need {shown_size(self.most)} ({self.what}; {shown_size(self.half)} if they end "
                f"half-way), more than the {shown_size(self.room)} that {where}: {self.ways_out}"
            )


def predict_size(
    spec: EnvSpec,
    *,
    capacity: int,
    dtype: str,
    prioritized: bool,
    total_env_steps: int,
    folder: Path | None,
    machines: int = 1,
    room: int | None = None,
) -> ReplaySize:
    """Predict the size of a full replay from the sizes of the environment.

    Args:
        spec: an environment without ``episode_limit`` is taken to fill the replay with the whole budget.
        capacity: episodes, over all ranks.
        dtype: of observations and states.
        prioritized: whether episodes have priorities.
        total_env_steps: the budget.
        folder: where it lies on disk; ``None``: in host memory.
        machines: over which the ranks are spread.
        room: bytes that there are; ``None``: what the machine says.
    """
    state = 0 if spec.state_is_joined_obs else spec.state_dim
    floats = spec.n_agents * spec.obs_dim * obs_dtype(spec, DTYPES[dtype]).itemsize + state * DTYPES[dtype].itemsize
    row = StepLayout(spec.n_agents, spec.n_actions).width + floats
    limit = spec.episode_limit
    most = capacity * (limit + 1) if limit else capacity + total_env_steps
    half = capacity * (limit // 2 + 1) if limit else capacity + total_env_steps // 2
    lengths = f"up to {limit:,} steps" if limit else f"unknown length within {total_env_steps:,} steps"
    share = capacity * (_RECORD_BYTES + _PRIORITY_BYTES * prioritized)
    needed = (most * row + share) // machines
    if room is None:
        room = available_memory() if folder is None else shutil.disk_usage(_existing(folder)).free
    ways: list[str] = []
    if limit is None:  # then it is the budget that counts, not the capacity
        ways.append("set env.episode_limit to the most steps of an episode")
    elif room and needed > room:
        ways.append(f"lower replay.capacity ({int(capacity * room / needed):,} fit)")
    ways += ["set replay.dtype=float16"] * (dtype == "float32") + ["set replay.storage=memmap"] * (folder is None)
    return ReplaySize(
        what=f"{capacity:,} episodes of {lengths}, in {dtype}",
        most=needed,
        half=(half * row + share) // machines,
        room=room,
        folder=folder,
        ways_out=" or ".join(ways),
        floats=most * floats // machines,
        floats_half=half * floats // machines,
    )


def _existing(folder: Path) -> Path:
    """Return the folder, or the closest one above it that is there."""
    return next((f for f in (folder, *folder.resolve().parents) if f.exists()), Path("/"))


def available_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the bytes that this process can still use, ``None`` where the system does not say.

    That is what the machine has free, or what its control groups leave of it.
    """
    found = [value * 1024 for key, value in _numbers(proc / "meminfo").items() if key == "MemAvailable:"]
    groups = _lines(proc / "self" / "cgroup")
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            base, limit, used, file = cgroup, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            base, limit, used = cgroup / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            file = "total_inactive_file"
        else:
            continue
        inner = base / path.lstrip("/")
        for folder in (inner, *inner.parents):  # a limit further out holds too
            if not folder.is_relative_to(base):
                break
            allowed, taken = _number(folder / limit), _number(folder / used)
            if allowed is not None and taken is not None:
                # Files that were read once and are cached give way.
                found.append(max(0, allowed - taken + _numbers(folder / "memory.stat").get(file, 0)))
    return min(found, default=None)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    text = "".join(_lines(path))
    return int(text) if text.isdigit() else None


def _numbers(path: Path) -> dict[str, int]:
    """Read lines of a name and a number."""
    words = [line.split() for line in _lines(path)]
    return {w[0]: int(w[1]) for w in words if len(w) > 1 and w[1].isdigit()}
