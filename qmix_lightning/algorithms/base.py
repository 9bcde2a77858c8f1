"""What every learner offers to the LightningModule."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from qmix_lightning.agents.policy import Policy
from qmix_lightning.types import TrajectoryBatch

__all__ = ["Learner", "LossTerms", "masked_sum"]


@dataclass
class LossTerms:
    """A loss as a sum and a count, because ranks hold different numbers of filled steps.

    Attributes:
        total: sum of the loss over what counts, a scalar with a graph.
        count: how many items were summed, a scalar.
        sums: what to log, each a detached sum over the same items.
    """

    total: Tensor
    count: Tensor
    sums: dict[str, Tensor] = field(default_factory=dict)


@runtime_checkable
class Learner(Protocol):
    """Networks and learning rule of one algorithm, as one module."""

    policy: Policy

    def loss(self, batch: TrajectoryBatch) -> LossTerms:
        """The loss of a batch whose padding may hold anything."""
        ...

    def after_update(self, *, episodes: int, updates: int) -> None:
        """Called after every optimiser step with the global counters."""
        ...

    def parameter_groups(self) -> list[dict[str, object]]:
        """What the optimiser trains, as torch parameter groups."""
        ...


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of ``values`` where ``mask`` is true; what is masked may be infinite or NaN."""
    return values.where(mask, values.new_zeros(())).sum()


def trainable_groups(modules: dict[str, nn.Module]) -> list[dict[str, object]]:
    """One parameter group for each named module that has parameters."""
    return [
        {"name": name, "params": params} for name, module in modules.items() if (params := list(module.parameters()))
    ]
