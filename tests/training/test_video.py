"""``callbacks=video``: a clip at evaluations, for the run folder and TensorBoard, which changes nothing of the run."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from qmix_lightning.errors import ConfigurationError
from qmix_lightning.training.callbacks.video import EpisodeVideo
from support import inprocess
from support.fakes import VaryingLength
from support.pictures import frames_of

FAKE = ["env=pettingzoo", "env.id=support.fakes:VaryingLength", "seed=3"]


def rows(folder: Path) -> str:
    return hashlib.sha256((folder / "metrics.csv").read_bytes()).hexdigest()


def test_clips_of_evaluations(tmp_path: Path):
    plain, filmed = tmp_path / "plain", tmp_path / "filmed"
    tiny = [a for a in inprocess.TINY if a != "logger=none"]
    inprocess.succeed([*FAKE, f"run_dir={plain}", *tiny, "logger=none"])
    inprocess.succeed([*FAKE, f"run_dir={filmed}", *tiny, "logger=tensorboard", "callbacks=video"])
    clips = sorted((filmed / "videos").iterdir())
    board = EventAccumulator(str(filmed / "tensorboard"), size_guidance={"images": 0})
    board.Reload()
    shown = board.Images("eval/episode")
    assert len(shown) == len(clips) >= 2
    assert [f"step_{image.step:09d}.gif" for image in shown] == [clip.name for clip in clips]
    assert [image.encoded_image_string for image in shown] == [clip.read_bytes() for clip in clips]
    assert len(frames_of(clips[0])) >= 4
    assert rows(plain) == rows(filmed), "the run is the same"


def test_evaluations_are_counted_over_a_resume(tmp_path: Path):
    trainer: Any = SimpleNamespace(sanity_checking=False, is_global_zero=True)
    filmed, callback = [], EpisodeVideo(str(tmp_path), every_n_evaluations=3)
    for number in range(1, 9):
        other = EpisodeVideo(str(tmp_path), every_n_evaluations=3)  # the run is resumed before each of them
        other.load_state_dict(callback.state_dict())
        callback, callback._record = other, Mock()
        callback.on_validation_end(trainer, Mock())
        filmed += [number] if callback._record.called else []
    assert filmed == [1, 4, 7]


class DrawsFloats(VaryingLength):
    def render_frame(self) -> np.ndarray:
        return np.zeros((8, 8, 3), np.float32)


def test_what_is_no_picture_costs_the_clip_and_not_the_run(tmp_path: Path):
    typed = ["env=pettingzoo", f"env.id={__name__}:DrawsFloats", f"run_dir={tmp_path}/x", *inprocess.TINY]
    result = inprocess.succeed([*typed, "total_env_steps=40", "callbacks=video"])
    assert "no video of this evaluation: render_frame() must return uint8" in result.err


@pytest.mark.parametrize("name", ["every_n_evaluations", "max_steps"])
def test_numbers_start_at_one(tmp_path: Path, name: str):
    with pytest.raises(ConfigurationError, match=rf"{name} \(0\)"):
        EpisodeVideo(str(tmp_path), **{name: 0})
