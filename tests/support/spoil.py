"""A callback that makes a network diverge."""

from typing import Any

import torch
from pytorch_lightning import Callback


class Spoil(Callback):
    """Sets a parameter to NaN after the first update that it sees."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        with torch.no_grad():
            next(pl_module.learner.parameters()).fill_(float("nan"))
