"""Put a clip of the team into the run folder and the loggers at evaluations."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger

from qmix_lightning.components import env_maker
from qmix_lightning.environment import VectorEnv
from qmix_lightning.errors import ConfigurationError, RunError
from qmix_lightning.policies import open_network
from qmix_lightning.rendering.frames import environment_that_draws
from qmix_lightning.rendering.recorder import record_episode
from qmix_lightning.rendering.video import VideoWriter, check_video, frames_per_second
from qmix_lightning.rollout.rollout_policy import frozen_copy
from qmix_lightning.training.datamodule import data_of
from qmix_lightning.training.module import TeamModule

__all__ = ["EpisodeVideo"]

TAG = "eval/episode"


class EpisodeVideo(Callback):
    """Callback that records one greedy episode at evaluations, the same start each time.

    It goes to ``videos/`` in the run folder, to TensorBoard's images, and to every logger that has Lightning's
    ``log_video(key, videos, step)``. An environment of its own plays it, in this process. A simulator that fails costs
    the clip, not the run.

    Args:
        run_dir: of the run.
        every_n_evaluations: evaluations from one clip to the next.
        max_steps: joint steps of a clip, at most.

    Raises:
        ConfigurationError: a number is less than 1.
        MissingDependencyError: what writes videos is not installed.
    """

    def __init__(self, run_dir: str, every_n_evaluations: int = 1, max_steps: int = 200) -> None:
        if every_n_evaluations < 1 or max_steps < 1:
            raise ConfigurationError(
                f"every_n_evaluations ({every_n_evaluations}) and max_steps ({max_steps}) must be at least 1"
            )
        self._folder = Path(run_dir) / "videos"
        self._every = every_n_evaluations
        self._max_steps = max_steps
        self._evaluations = 0
        self._env: VectorEnv | None = None
        check_video(self._folder / "clip.gif")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        self._evaluations += 1
        if (self._evaluations - 1) % self._every == 0:
            try:
                self._record(trainer, cast(TeamModule, pl_module))
            except (ConfigurationError, RunError) as error:  # what it draws may be no picture
                print(f"no video of this evaluation: {error}", file=sys.stderr)

    def _record(self, trainer: Trainer, module: TeamModule) -> None:
        assert module.metadata is not None  # a run's module has it
        config = module.metadata.config
        if self._env is None:
            self._env = environment_that_draws(
                config["env"], lambda section: env_maker(section, evaluation=True, open_policy=open_network)(1)
            )
        policy = frozen_copy(module.learner.policy)
        step = data_of(trainer).counters.env_steps
        path = self._folder / f"step_{step:09d}.gif"
        fps = frames_per_second(self._env.spec.episode_limit or self._max_steps)
        with VideoWriter(path, fps) as writer:
            record_episode(
                self._env, policy, seed=config["seed"], gamma=1.0, on_frame=writer, max_steps=self._max_steps
            )
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                _show_in_tensorboard(logger, path, step)
            elif callable(log_video := getattr(logger, "log_video", None)):
                log_video(TAG, [str(path)], step=step)

    def state_dict(self) -> dict[str, Any]:
        return {"evaluations": self._evaluations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._evaluations = int(state_dict["evaluations"])

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None


def _show_in_tensorboard(logger: TensorBoardLogger, path: Path, step: int) -> None:
    """Add the clip as an image, which TensorBoard plays: its ``add_video`` would need another package."""
    from PIL import Image
    from tensorboard.compat.proto import summary_pb2

    protocol: Any = summary_pb2  # its classes are made while it is imported
    summary = protocol.Summary
    with Image.open(path) as clip:
        width, height = clip.size
    image = summary.Image(height=height, width=width, colorspace=3, encoded_image_string=path.read_bytes())
    writer: Any = logger.experiment.file_writer
    writer.add_summary(summary(value=[summary.Value(tag=TAG, image=image)]), step)
