"""The callback that writes last.ckpt and best.ckpt: what is saved when something fails, and what each file knows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import pytest
import torch

from qmix_lightning.checkpoint.files import read_checkpoint
from qmix_lightning.errors import EnvironmentFault
from qmix_lightning.training.callbacks.metrics_log import MetricsLog
from qmix_lightning.training.callbacks.run_checkpoint import RunCheckpoint
from support import inprocess, runs


@pytest.mark.parametrize(
    ("ranks", "collecting", "evaluating", "saved"),
    [
        (1, True, False, True),
        (1, True, True, True),
        (2, True, False, True),
        (2, True, True, False),
        (1, False, False, False),
        (2, False, False, False),
    ],
)
def test_what_only_one_rank_knows_is_not_saved(tmp_path: Path, ranks: int, collecting: bool, evaluating: bool, saved):
    """A failing environment in an evaluation, or while episodes in flight are played again, is no other rank's."""
    checkpoint = RunCheckpoint(tmp_path, 100, None, MetricsLog())
    checkpoint.save = Mock()
    data = SimpleNamespace(
        collector=object() if collecting else None, counters=SimpleNamespace(evaluation_pending=evaluating)
    )
    trainer = cast(Any, SimpleNamespace(world_size=ranks, datamodule=data))
    checkpoint.on_exception(trainer, cast(Any, None), EnvironmentFault("gone"))
    assert checkpoint.save.called == saved


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_parameters_come_back_in_their_own_precision(tmp_path: Path, precision: str):
    tiny = [*inprocess.TINY, f"trainer.precision={precision}", "num_threads=1"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    inprocess.succeed([*tiny, f"run_dir={whole}"])
    inprocess.succeed([*tiny, f"run_dir={stopped}", "trainer.max_steps=10"])
    inprocess.succeed([f"run_dir={stopped}", "ckpt_path=last", "trainer.max_steps=-1"])
    one, other = (
        runs.flat(read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]) for run in (whole, stopped)
    )
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(other[name])), name


def test_counts_stay_what_they_are(finished_run: Path, tmp_path: Path):
    """A run that goes on and has nothing left to do writes what it has read, not ``60.0`` for ``60``."""
    shutil.copytree(finished_run, tmp_path / "run")
    inprocess.succeed([f"run_dir={tmp_path}/run", "ckpt_path=last"])
    for folder in (finished_run, tmp_path / "run"):
        best = json.loads((folder / "summary.json").read_text())["best"]
        assert (best["env_steps"], type(best["env_steps"])) == (60, int)
    saved = [read_checkpoint(f / "checkpoints" / "last.ckpt") for f in (finished_run, tmp_path / "run")]
    known = [{n: s["callbacks"]["RunCheckpoint"][n] for n in ("best", "best_eval", "loggers")} for s in saved]
    assert repr(known[0]) == repr(known[1])
