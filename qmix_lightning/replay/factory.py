"""Create the episode store that the replay section of a configuration asks for, on the replay device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from pytorch_lightning import Trainer

from qmix_lightning.config.run_config import ReplayConfig, RunConfig
from qmix_lightning.replay.device import ReplayDevice, choose_replay_device, free_memory
from qmix_lightning.replay.episode_replay import EpisodeReplay
from qmix_lightning.replay.memory_estimate import ReplaySize, predict_size
from qmix_lightning.replay.on_policy import RoundStore
from qmix_lightning.replay.prioritized import PrioritizedReplay
from qmix_lightning.types import EnvSpec

__all__ = ["fit_capacity", "make_store", "memmap_folder", "plan_replay"]


def make_store(
    config: ReplayConfig, spec: EnvSpec, ranks: int, run_dir: Path, device: torch.device | None = None
) -> EpisodeReplay:
    """Create the store of a rank's episodes; with a ``device``, their observations and states lie on it."""
    capacity, folder = config.capacity // ranks, memmap_folder(config, run_dir)
    if config.kind == "prioritized":
        return PrioritizedReplay(
            spec,
            capacity,
            alpha=config.priority_alpha,
            beta=config.priority_beta,
            beta_anneal_steps=config.priority_beta_anneal_steps,
            dtype=config.dtype,
            folder=folder,
            device=device,
        )
    kinds = {"uniform": EpisodeReplay, "on_policy": RoundStore}
    return kinds[config.kind](spec, capacity, dtype=config.dtype, folder=folder, device=device)


def memmap_folder(config: ReplayConfig, run_dir: Path) -> Path | None:
    """Return the folder in which the replay is kept on disk, ``None`` if it is in host memory."""
    return Path(config.memmap_dir or run_dir) if config.storage == "memmap" else None


def _size(config: RunConfig, spec: EnvSpec, run_dir: Path, machines: int) -> ReplaySize:
    replay = config.replay
    return predict_size(
        spec,
        capacity=replay.capacity,
        dtype=replay.dtype,
        prioritized=replay.kind == "prioritized",
        total_env_steps=config.total_env_steps,
        folder=memmap_folder(replay, run_dir),
        machines=machines,
    )


def fit_capacity(config: RunConfig, spec: EnvSpec, run_dir: Path) -> RunConfig:
    """Return the configuration with as many episodes as half of the room holds, where its own do not fit.

    For a capacity that nobody chose, on one process: several would measure different rooms. Where not even some batches
    fit it stays, to be refused; so it does where episodes are of unknown length, since fewer of them may be longer.
    """
    size = _size(config, spec, run_dir, machines=1)
    fixed = config.replay.kind == "on_policy" or spec.episode_limit is None
    if fixed or size.room is None or size.most <= size.room:
        return config
    most = config.replay.capacity * size.room / (2 * size.most)
    unit = 10 ** max(0, len(str(int(most))) - 2)
    capacity = int(most) // unit * unit  # two digits
    if capacity < 4 * config.replay.batch_size:
        return config
    return replace(config, replay=replace(config.replay, capacity=capacity))


def plan_replay(config: RunConfig, spec: EnvSpec, run_dir: Path, trainer: Trainer) -> tuple[ReplaySize, ReplayDevice]:
    """Predict the replay's size and choose where observations and states go; refuse it if there is no room."""
    replay, nodes, device = config.replay, trainer.num_nodes, trainer.strategy.root_device
    size = _size(config, spec, run_dir, nodes)
    ranks = max(1, trainer.world_size // nodes)  # of this machine
    replay_device = choose_replay_device(
        replay.device,
        accelerator=device,
        in_file=replay.storage == "memmap",
        need=size.floats // ranks,
        free=free_memory(device),
        growing=spec.episode_limit is None,
    )
    (size if replay_device.device is None else size.without_floats()).check()
    return size, replay_device
