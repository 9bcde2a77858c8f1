"""Keep the checkpoints of the best evaluations beside ``best.ckpt`` and ``last.ckpt``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint

__all__ = ["BestCheckpoints"]


class BestCheckpoints(ModelCheckpoint):
    """Lightning's callback, whose files are whole runs in the run's folder, named by their update.

    A checkpoint names files only, never folders: what it says is not where something is removed.

    Args:
        run_dir: the run's folder; files go to ``checkpoints`` in it.
        monitor: of evaluations (``eval/return_mean``) or of training (``train/loss``).
        mode: ``max`` if more is better.
        save_top_k: how many are kept; -1: all.
        every_n_epochs: evaluations between two.
    """

    def __init__(
        self, run_dir: str, monitor: str, mode: Literal["max", "min"], save_top_k: int, every_n_epochs: int = 1
    ) -> None:
        super().__init__(
            dirpath=Path(run_dir) / "checkpoints",
            filename="update{step}",
            auto_insert_metric_name=False,
            monitor=monitor,
            mode=mode,
            save_top_k=save_top_k,
            every_n_epochs=every_n_epochs,
            enable_version_counter=False,  # a resumed run writes the same file again
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._save_on_train_epoch_end = not trainer.enable_validation

    def state_dict(self) -> dict[str, Any]:
        return {"scores": {Path(path).name: float(score) for path, score in self.best_k_models.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Find the files again by their names; those that are gone are forgotten.

        Where fewer are kept than before, the worst are forgotten too; their files stay.
        """
        folder = Path(str(self.dirpath))
        found = {str(folder / Path(name).name): float(score) for name, score in state_dict["scores"].items()}
        scores = {path: score for path, score in found.items() if Path(path).is_file()}
        worst, best = (max, min) if self.mode == "min" else (min, max)
        while 0 <= self.save_top_k < len(scores):
            del scores[worst(scores, key=scores.__getitem__)]
        self.best_k_models = {path: torch.tensor(score) for path, score in scores.items()}
        if not scores:
            return
        self.kth_best_model_path = worst(scores, key=scores.__getitem__)
        self.best_model_path = best(scores, key=scores.__getitem__)
        self.kth_value = self.best_k_models[self.kth_best_model_path]
        self.best_model_score = self.best_k_models[self.best_model_path]
