"""What a run did, told by a callback: its updates with their batch, networks and gradients, and its steps, counted."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pytorch_lightning import Callback
from torch import Tensor

from qmix_lightning.algorithms.base import Learner
from qmix_lightning.types import TrajectoryBatch


@dataclass
class Update:
    """One update of a run."""

    learner: Learner
    batch: TrajectoryBatch
    loss: float = float("nan")


@dataclass
class Story:
    """A whole run.

    Attributes:
        updates: how many there were.
        last: the last one, before its step was taken.
        first: parameters before the first one.
        reached: parameters that had a gradient other than zero in some update.
        env_steps: joint steps that the training environments were asked for.
    """

    updates: int = 0
    last: Update | None = None
    first: dict[str, Tensor] = field(default_factory=dict)
    reached: set[str] = field(default_factory=set)
    env_steps: int = 0


class Witness(Callback):
    """Writes down the run that it is a callback of, as the last of ``stories``."""

    stories: ClassVar[list[Story]] = []

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.stories.append(story := Story())
        story.first = {n: p.detach().clone() for n, p in pl_module.learner.named_parameters()}
        env = trainer.datamodule._env
        step = env.step

        def counting(actions: Tensor, active: Tensor) -> Any:
            story.env_steps += int(active.sum())
            return step(actions, active)

        env.step = counting

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.stories[-1].last = Update(copy.deepcopy(pl_module.learner), batch.trajectories)

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        named = pl_module.learner.named_parameters()
        self.stories[-1].reached |= {n for n, p in named if p.grad is not None and p.grad.abs().max() > 0}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        story = self.stories[-1]
        story.updates += 1
        assert story.last is not None
        story.last.loss = float(outputs["loss"])


def told() -> Story:
    """Of the last run."""
    return Witness.stories.pop()
