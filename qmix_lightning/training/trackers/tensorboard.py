"""Write a run's logs for TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lightning_fabric.utilities.rank_zero import rank_zero_only
from pytorch_lightning.loggers import TensorBoardLogger
from torch.utils.tensorboard.summary import hparams

from qmix_lightning.training.row_position import PlacesRows

__all__ = ["RunTensorBoardLogger"]

_SHOWN = ("eval/return_mean", "eval/win_rate")
"""Metrics that stand beside the hyperparameters."""


class RunTensorBoardLogger(PlacesRows, TensorBoardLogger):
    """Lightning's logger, with hyperparameters beside the evaluations, and the summary as a text."""

    @rank_zero_only
    def log_hyperparams(self, params: Any, metrics: Any = None, step: int | None = None) -> None:
        """Write flat hyperparameters for the tab HPARAMS, without a made-up metric."""
        super().log_hyperparams(params)
        for part in hparams({k: "none" if v is None else v for k, v in params.items()}, dict.fromkeys(_SHOWN, 0.0)):
            self.experiment.file_writer.add_summary(part)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write ``metrics`` over environment steps."""
        super().log_metrics(dict(metrics), self.placed(metrics, step)[1])

    @rank_zero_only
    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json`` as a text."""
        self.experiment.purge_step = None  # a writer that was closed opens anew, and would drop what came after it
        self.experiment.add_text("summary", f"```json\n{json.dumps(summary, indent=2, default=str)}\n```")
        self.experiment.close()
