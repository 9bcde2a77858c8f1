"""End a run when a metric gets no better."""

from __future__ import annotations

from typing import Any, Literal

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason

__all__ = ["RunEarlyStopping"]


class RunEarlyStopping(EarlyStopping):
    """Lightning's callback, which looks after every evaluation, and at the end of an epoch where there is none.

    Args:
        monitor: of evaluations (``eval/return_mean``) or of training (``train/loss``).
        mode: ``max`` if more is better.
        patience: evaluations in a row without a better value.
        min_delta: by how much a value must be better.
        stopping_threshold: a value that is good enough to end at once; ``None``: none.
        divergence_threshold: a value that is bad enough to end at once; ``None``: none.
    """

    def __init__(
        self,
        monitor: str,
        mode: Literal["max", "min"],
        patience: int,
        min_delta: float = 0.0,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
    ) -> None:
        super().__init__(
            monitor,
            mode=mode,
            patience=patience,
            min_delta=min_delta,
            stopping_threshold=stopping_threshold,
            divergence_threshold=divergence_threshold,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # An evaluation that is repeated on resume has no end of an epoch after it.
        self._check_on_train_epoch_end = not trainer.enable_validation

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting; the patience is that of the present configuration, and nothing has stopped this run yet."""
        anew = {"patience": self.patience, "stopping_reason": EarlyStoppingReason.NOT_STOPPED.value}
        super().load_state_dict(state_dict | anew)
