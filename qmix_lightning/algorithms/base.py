"""Define the base class of learners: what every learner offers to the LightningModule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from qmix_lightning.agents.policy import Policy
from qmix_lightning.runtime.moved import warn_renamed
from qmix_lightning.types import TrajectoryBatch

__all__ = ["Learner", "LossTerms", "masked_sum", "trainable_groups"]


class LossTerms:
    """A loss as a sum and a count, because ranks hold different numbers of filled steps.

    What is only logged, or only wanted by prioritised replay, may be given as a function: it is called when it is asked
    for, which most updates do not.

    Args:
        total: sum of the loss over what counts, a scalar with a graph.
        count: how many items were summed, a scalar.
        sums: what to log, each a detached sum over the same items.
        td_errors: ``[B]``, how wrong each row's values were, for prioritised replay; ``None`` if it means nothing.
        row_errors: its name of 0.1.0, which goes with 0.3.0.
    """

    def __init__(
        self,
        total: Tensor,
        count: Tensor,
        sums: dict[str, Tensor] | Callable[[], dict[str, Tensor]] | None = None,
        td_errors: Tensor | Callable[[], Tensor] | None = None,
        row_errors: Tensor | Callable[[], Tensor] | None = None,
    ) -> None:
        if row_errors is not None:
            warn_renamed("LossTerms(row_errors=...)", "td_errors")
        self.total = total
        self.count = count
        self._sums = {} if sums is None else sums
        self._td_errors = row_errors if td_errors is None else td_errors

    @property
    def sums(self) -> dict[str, Tensor]:
        """The sums to log."""
        if callable(self._sums):
            with torch.no_grad():
                self._sums = self._sums()
        return self._sums

    @property
    def td_errors(self) -> Tensor | None:
        """TD errors ``[B]``: how wrong each row's values were."""
        if callable(self._td_errors):
            with torch.no_grad():
                self._td_errors = self._td_errors()
        return self._td_errors


class Learner(nn.Module):
    """Networks and learning rule of one algorithm, as one module.

    The constructor is given by keyword what it asks for of ``policy``, ``mixer``, ``spec`` (``EnvSpec``) and
    ``make_policy`` (a function that makes another policy like the acting one, with weights of its own; given ``spec``,
    one for other sizes); its other keyword arguments are the keys of ``conf/algorithm/NAME.yaml``. A dataclass among
    them stands for its fields.

    Attributes:
        policy_class: what kind of acting network it trains: by epsilon-greedy values, or a stochastic policy.
        on_policy: it learns only from what the present policy did; batches then have ``extras["epsilon"] [B]``, the
            policy's epsilon, and ``extras["draws"] [B, N]`` in [0, 1), for the actions after the last step.
        round_extras: on-policy: names of what :meth:`prepare_round` makes of a round, which its batches then have too.
        policy: the rollout policy; the only part that the collector and an evaluation see.
        all_reduce: sums a tensor over the ranks, in place; set by the LightningModule.
        state_is_features: see :class:`~qmix_lightning.types.EnvSpec`; set where the learner is built.
    """

    policy_class: ClassVar[type[Policy]] = Policy
    on_policy: ClassVar[bool] = False
    round_extras: ClassVar[tuple[str, ...]] = ()
    state_is_features: bool = False
    policy: Policy

    def __init__(self) -> None:
        super().__init__()
        self.all_reduce: Callable[[Tensor], Tensor] = lambda tensor: tensor

    def prepare_round(self, batch: TrajectoryBatch) -> dict[str, Tensor]:
        """Compute :attr:`round_extras` of a whole round, before its first update; only called if there are any.

        A checkpoint keeps them, so what depends on the networks from before the round may be asked of them here.

        Args:
            batch: this rank's share of the round, with ``extras["epsilon"]`` and ``extras["draws"]``.

        Returns:
            Each ``[B, T, ...]``.
        """
        raise NotImplementedError

    def loss(self, batch: TrajectoryBatch) -> LossTerms:
        """Return the loss of a batch whose padding may hold anything."""
        raise NotImplementedError

    @torch.no_grad()
    def with_state(self, batch: TrajectoryBatch) -> TrajectoryBatch:
        """Return the batch with a state: the agents' features ``[B, T+1, N * F]`` where the environment gives none.

        They are those of the present policy and have no gradient; those of agents that are not alive are zero.
        """
        if not self.state_is_features:
            return batch
        features = self.policy.unroll_features(batch)
        alive = (batch.agent_mask & batch.row_valid()[..., None])[..., None]
        return replace(batch, state=features.where(alive, features.new_zeros(())).flatten(-2))

    def observe(self, batch: TrajectoryBatch) -> None:
        """Update running statistics, before the loss of the same batch."""
        self.policy.inputs.observe(batch, self.all_reduce)

    def after_update(self, *, episodes: int, updates: int) -> None:
        """Do what follows an optimiser step; called after every one with the global counters."""

    def played_returns(self, batch: TrajectoryBatch) -> Tensor | None:
        """Return discounted returns of what was played, ``[B, T]``, to compare values with; ``None``: none."""
        return None

    def target_copies(self, *, episodes: int, updates: int) -> int | None:
        """Return how often target networks are updated in so many episodes and updates; ``None``: there are none."""
        return None

    def parameter_groups(self) -> list[dict[str, object]]:
        """Return what the optimiser trains, as torch parameter groups: here one for each child module that trains."""
        return trainable_groups(dict(self.named_children()))


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Return the sum of ``values`` where ``mask`` is true; what is masked may be infinite or NaN."""
    return values.where(mask, values.new_zeros(())).sum()


def trainable_groups(modules: dict[str, nn.Module]) -> list[dict[str, object]]:
    """Return one parameter group for each named module with parameters that require a gradient."""
    return [
        {"name": name, "params": params}
        for name, module in modules.items()
        if (params := [p for p in module.parameters() if p.requires_grad])
    ]
