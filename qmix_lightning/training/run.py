"""Define :class:`Run`, which holds the parts of one training run."""

from __future__ import annotations

from dataclasses import dataclass

from pytorch_lightning import Trainer

from qmix_lightning.checkpoint.manifest import RunMetadata
from qmix_lightning.config.run_config import RunConfig
from qmix_lightning.replay.device import ReplayDevice
from qmix_lightning.replay.memory_estimate import ReplaySize
from qmix_lightning.training.callbacks.metrics_log import MetricsLog
from qmix_lightning.training.callbacks.run_checkpoint import RunCheckpoint
from qmix_lightning.training.datamodule import ReplayDataModule
from qmix_lightning.training.module import TeamModule
from qmix_lightning.types import EnvSpec

__all__ = ["Run"]


@dataclass
class Run:
    """Parts of one training run: trainer, module, data module, log, checkpoints, replay, and what is recorded of it.

    ``config`` is what it runs by: what was asked for, with a replay that fits where that was left open.
    """

    trainer: Trainer
    module: TeamModule
    data: ReplayDataModule
    spec: EnvSpec
    config: RunConfig
    log: MetricsLog
    checkpoint: RunCheckpoint
    replay_size: ReplaySize
    replay_device: ReplayDevice
    metadata: RunMetadata
