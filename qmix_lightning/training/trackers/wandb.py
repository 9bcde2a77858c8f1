"""Track a run in Weights & Biases."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from qmix_lightning.training.trackers.base import TrackedRun, Tracker, new_id

__all__ = ["WandbTracker"]

_NO_FAILURE = ("completed", "stopped", "pruned", "interrupted")
"""The status of runs that did what they were asked for."""


class WandbTracker(Tracker):
    """Tracker that writes to Weights & Biases; its step is the environment step.

    A resumed run goes on under the same id: online, behind the last step that W&B has; offline, in a new folder that
    begins with the rows of ``metrics.csv`` and so holds the whole run. A session that was killed offline has lost its
    last seconds, and W&B reads no offline folder but to sync it.

    Args:
        run: what it is told of the run.
        project: ``None``: ``WANDB_PROJECT``, or else ``qmix-lightning``.
        entity: a user or a team; ``None``: the one that is logged in.
        mode: ``None``: ``WANDB_MODE``, or else online.
        name: of the run; ``None``: the run folder's.
        group: ``None``: the study's name.
        tags: beside the names of the environment and the algorithm.
    """

    package = "wandb"

    def __init__(
        self,
        run: TrackedRun,
        *,
        project: str | None = None,
        entity: str | None = None,
        mode: Literal["online", "offline"] | None = None,
        name: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
    ) -> None:
        super().__init__(run, name=name, group=group, tags=tags)
        self.project = project
        self.entity = entity
        self.mode = mode
        self.experiment: Any = None

    @property
    def view(self) -> str:
        run = self.experiment
        return f"wandb sync {run.dir.removesuffix('/files')}" if run.offline else str(run.url)

    def open(self, params: Mapping[str, Any]) -> dict[str, int]:
        wandb: Any = import_module("wandb")

        mode: Any = self.mode  # the literals of W&B are its own
        offline = (mode or os.environ.get("WANDB_MODE")) == "offline"
        resume = "never" if self.tracker_id is None else "allow" if offline else "must"
        self.tracker_id = self.tracker_id or new_id()
        self.experiment = wandb.init(
            project=self.project or os.environ.get("WANDB_PROJECT", "qmix-lightning"),
            entity=self.entity,
            mode=mode,
            name=self.run_name,
            group=self.group,
            tags=self.tags,
            id=self.tracker_id,
            resume=resume,
            dir=str(self.run.folder),
            settings=wandb.Settings(silent=True, symlink=False),
        )
        # A link out of the run's folder, which a resume would refuse to follow.
        (Path(self.experiment.dir).parent / "logs" / "debug-core.log").unlink(missing_ok=True)
        self.experiment.config.update(dict(params), allow_val_change=True)
        return {}

    def write(self, metrics: Mapping[str, float], step: int) -> None:
        if step >= self.experiment.step:  # W&B only goes forward
            self.experiment.log(dict(metrics), step=step)

    def close(self, summary: Mapping[str, Any], step: int) -> None:
        self.experiment.summary.update({f"summary/{key}": value for key, value in summary.items()})
        self.experiment.finish(exit_code=0 if summary["status"] in _NO_FAILURE else 1)
