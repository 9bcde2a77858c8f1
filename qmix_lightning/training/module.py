"""Train one learner as a LightningModule: one loss and one automatic optimisation step for each batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from pytorch_lightning import Callback, LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric

from qmix_lightning.algorithms.base import Learner, LossTerms
from qmix_lightning.checkpoint.manifest import RunMetadata
from qmix_lightning.errors import CheckpointError, ConfigurationError, RunDiverged
from qmix_lightning.optimizers import set_learning_rates
from qmix_lightning.runtime.distributed import all_reduce_sum
from qmix_lightning.training.intervals import mean_name
from qmix_lightning.training.metrics import MeanWithInterval
from qmix_lightning.types import EpisodeStats, TrainBatch, TrajectoryBatch

__all__ = ["PlayedReturns", "TeamModule", "diverged", "rewind_loops", "summarize_returns"]


@dataclass(frozen=True)
class PlayedReturns:
    """Discounted returns of the steps in a batch: the highest, their sum, the sum of their squares, their number."""

    highest: float
    total: float
    squares: float
    steps: float


class TeamModule(LightningModule):
    """LightningModule of a learner (agents, mixer and both targets), its optimiser and the evaluation metrics.

    Args:
        learner: networks and learning rule; see ``qmix_lightning.algorithms``.
        optimizer: makes the optimiser from parameter groups. Those with the same ``max_grad_norm`` are clipped by the
            norm of all their gradients, but for groups that a ``clip_group`` of their own keeps apart.
        episode_metrics: names the environment reports at an episode's end; ``won`` becomes the win rate.
        metadata: what checkpoints say about the run.
    """

    def __init__(
        self,
        *,
        learner: Learner,
        optimizer: Callable[[list[dict[str, Any]]], Optimizer],
        episode_metrics: tuple[str, ...] = (),
        metadata: RunMetadata | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(learner, Learner):
            raise TypeError(f"a learner must extend {Learner.__module__}.Learner, got {type(learner).__name__}")
        self.learner = learner
        learner.all_reduce = all_reduce_sum
        self._make_optimizer = optimizer
        self.episode_metrics = episode_metrics
        self.eval_metrics = nn.ModuleDict({n: MeanWithInterval() for n in ("return", "length", *episode_metrics)})
        self.metadata = metadata
        self.played: PlayedReturns | None = None
        self._played: Tensor | None = None
        self._last_terms: LossTerms | None = None
        self._grad_norm: Tensor | None = None
        self._counters = (0, 0)
        self._td_errors: tuple[Tensor, Tensor] | None = None
        self._not_finite: Tensor | None = None
        self._settings: list[dict[str, Any]] = []
        self.on_new_optimizer: Callable[[Optimizer], None] | None = None

    def forward(self, obs: Tensor, last_action: Tensor, state: tuple[Tensor, ...]) -> Any:
        """Run the acting network: see :class:`qmix_lightning.agents.policy.Policy`."""
        return self.learner.policy(obs, last_action, state)

    # -- training ------------------------------------------------------------------------------------------------

    def training_step(self, batch: TrainBatch, batch_idx: int) -> Tensor:
        set_learning_rates(self.trainer.optimizers[0], batch.env_steps)  # the step is taken after this returns
        trajectories = self.learner.with_state(batch.trajectories)
        self.learner.observe(trajectories)
        terms = self.learner.loss(trajectories)
        if not isinstance(terms, LossTerms):
            raise ConfigurationError(
                f"{type(self.learner).__name__}.loss must return {LossTerms.__module__}.LossTerms, not "
                f"{type(terms).__name__}"
            )
        if self._last_terms is None:
            self._check_first(terms)
        every = self.trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        logged = every and (self.trainer.global_step + 1) % every == 0
        self._played = summarize_returns(self.learner, trajectories) if logged else None
        # Ranks hold different numbers of filled steps. DDP averages gradients over ranks, so dividing by the global
        # count and multiplying by the ranks makes the average the gradient of the joined batch.
        count = all_reduce_sum(terms.count.to(terms.total.dtype))
        self._counters = (batch.episodes, self.trainer.global_step + 1)
        if batch.episode_ids is not None:
            if terms.td_errors is None:
                raise ConfigurationError("this algorithm returns no TD errors of episodes: use replay=uniform")
            self._td_errors = (batch.episode_ids, terms.td_errors)
        self._last_terms, total = terms, terms.total
        terms.total = total.detach()  # what is kept until the next update has no graph
        return total * (self.trainer.world_size / count.clamp(min=1))

    def _check_first(self, terms: LossTerms) -> None:
        """Check the loss of the first update: torch's messages about one that cannot be minimised name no class."""
        kind = type(self.learner).__name__
        for name, value in (("total", terms.total), ("count", terms.count)):
            if not isinstance(value, Tensor) or value.dim():
                found = f"[{', '.join(map(str, value.shape))}]" if isinstance(value, Tensor) else type(value).__name__
                raise ConfigurationError(f"{kind}.loss returned the {name} {found}; a tensor with one number is needed")
        if not terms.total.requires_grad:
            raise ConfigurationError(f"{kind}.loss returned a total without a gradient: was it detached?")

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self._look_at_last()
        episodes, updates = self._counters
        self.learner.after_update(episodes=episodes, updates=updates)
        if self._td_errors is not None:
            self.trainer.datamodule.update_priorities(*self._td_errors)  # pyright: ignore[reportAttributeAccessIssue]
            self._td_errors = None

    def _look_at_last(self) -> None:
        """Remember whether the loss and the gradient's norm were finite, on their device: nothing waits for it."""
        if self._last_terms is None:
            return
        seen = self._last_terms.total.float()
        # Where gradients are scaled, one that overflows is expected, and its step is skipped.
        if self._grad_norm is not None and getattr(self.trainer.precision_plugin, "scaler", None) is None:
            seen = seen + self._grad_norm
        # 0 for a number; NaN otherwise, and NaN it stays.
        spoiled = seen * 0.0
        self._not_finite = spoiled if self._not_finite is None else self._not_finite.add_(spoiled)

    @torch.no_grad()
    def check_finite(self) -> None:
        """Check every loss and gradient so far, parameters and the optimiser's state; every rank calls it.

        It waits for the device, so it is called before something is saved and not at every update.

        Raises:
            RunDiverged: one is NaN or infinite, on any rank; the message says which.
        """
        states = [state for optimizer in self.trainer.optimizers for state in optimizer.state.values()]
        parts: dict[str, list[Tensor]] = {
            "loss or gradient": [] if self._not_finite is None else [self._not_finite],
            "network": [*self.learner.parameters(), *self.learner.buffers()],
            "state of the optimiser": [v for state in states for v in state.values() if isinstance(v, Tensor)],
        }
        found = [
            sum((~torch.isfinite(t).all()).to(self.device, torch.float32) for t in tensors if t.is_floating_point())
            for tensors in parts.values()
        ]
        numbers = all_reduce_sum(torch.stack([torch.as_tensor(n, device=self.device).float() for n in found])).tolist()
        for part, number in zip(parts, numbers, strict=True):
            if number:
                raise diverged(part, self.trainer.global_step)

    def configure_optimizers(self) -> Optimizer:
        optimizer = self._make_optimizer(self.learner.parameter_groups())
        if self.on_new_optimizer is not None:
            self.on_new_optimizer(optimizer)
        self._settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        return optimizer

    def on_train_start(self) -> None:
        """Give the optimiser the settings of the configuration: a checkpoint restores its state and learning rates."""
        for group, settings in zip(self.trainer.optimizers[0].param_groups, self._settings, strict=True):
            rate = float(group["lr"])
            if not 0.0 <= rate < math.inf:
                raise CheckpointError(f"the checkpoint has a learning rate of {rate}")
            for key in group.keys() - settings.keys() - {"params"}:
                del group[key]
            group.update(settings | {"lr": rate})

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the norm of all gradients; ``trainer.gradient_clip_val``, if set, is used instead of the groups'."""
        if gradient_clip_val is not None:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        limits: dict[tuple[float, str], list[Tensor]] = {}
        for group in optimizer.param_groups:
            together = group.get("max_grad_norm") or 0.0, group.get("clip_group", "")
            limits.setdefault(together, []).extend(group["params"])
        norms = [nn.utils.clip_grad_norm_(params, limit or math.inf) for (limit, _), params in limits.items()]
        self._grad_norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))

    @property
    def last_sums(self) -> dict[str, Tensor]:
        """Return the sums and count of the last update, and the norm of its gradient; empty before the first."""
        if self._last_terms is None:
            return {}
        terms, norm = self._last_terms, self._grad_norm
        sums = {"loss": terms.total.detach(), **terms.sums, "count": terms.count.detach()}
        return sums if norm is None else sums | {"grad_norm": norm}

    def train_metrics(self) -> dict[str, float]:
        """Return means over the last batch of all ranks; call it on every rank. One synchronisation with the device."""
        sums = self.last_sums
        if not sums:
            return {}
        local = {name: sums[name].to(torch.float32) for name in sorted(sums)}
        norm = local.pop("grad_norm", None)
        summed = all_reduce_sum(torch.stack(list(local.values())))
        # The norm is that of the joined gradient already; what was played is this rank's.
        others = [t.to(torch.float32).reshape(-1) for t in (norm, self._played) if t is not None]
        numbers = torch.cat([summed, *others]).tolist()
        self.played = None if self._played is None else PlayedReturns(*numbers[-4:])
        values = dict(zip(local, numbers, strict=False))
        count = max(1.0, values.pop("count"))
        means = {name: value / count for name, value in values.items()}
        means["lr"] = self.trainer.optimizers[0].param_groups[0]["lr"]
        return means if norm is None else means | {"grad_norm": numbers[len(local)]}

    # -- evaluation ----------------------------------------------------------------------------------------------

    def validation_step(self, batch: EpisodeStats, batch_idx: int) -> None:
        values = {"return": batch.returns, "length": batch.lengths, **batch.metrics}
        for name, metric in self.eval_metrics.items():
            cast(Metric, metric).update(values.get(name, []))

    @property
    def eval_names(self) -> list[str]:
        """Return the names of the metrics of an evaluation."""
        others = (f"eval/{mean_name(n)}" for n in self.eval_metrics if n != "return")
        return ["eval/return_mean", "eval/return_ci95", "eval/episodes", *others]

    def on_validation_epoch_end(self) -> None:
        results: dict[str, float] = {}
        for name, metric in self.eval_metrics.items():
            mean, half_width, count = cast(Metric, metric).compute()
            cast(Metric, metric).reset()
            results[f"eval/{mean_name(name)}"] = mean
            if name == "return":
                results |= {"eval/return_ci95": half_width, "eval/episodes": float(count)}
        # Every rank has the joined values already, so averaging them again changes nothing.
        self.log_dict(results, logger=False, sync_dist=self.trainer.world_size > 1)
        self.eval_results = results

    # -- Lightning's own ways ------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list[Callback]:
        """Bring what stops at the budget and counts evaluations to a trainer that does not have it."""
        from qmix_lightning.training.callbacks.run_control import RunControl
        from qmix_lightning.training.datamodule import ReplayDataModule

        data = getattr(self.trainer, "datamodule", None)
        has_it = any(isinstance(callback, RunControl) for callback in self.trainer.callbacks)  # pyright: ignore[reportAttributeAccessIssue]
        return [] if has_it or not isinstance(data, ReplayDataModule) else [RunControl()]

    @classmethod
    def load_from_checkpoint(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls,
        checkpoint_path: str | Path,
        *,
        optimizer: Callable[[list[dict[str, Any]]], Optimizer] | None = None,
        map_location: Any = None,
    ) -> TeamModule:
        """Return the module of a checkpoint, with networks and settings of the learner; nothing in the file is run.

        To go on with a run use ``qmix_lightning.train(resume=...)``, to act with its team ``qmix_lightning.load``.

        Args:
            checkpoint_path: a ``.ckpt`` of this package, or anything else that holds the learner's part.
            optimizer: makes the optimiser, if it is to be trained on, e.g. ``qmix_lightning.optimizers.adam(...)``.
            map_location: the device.

        Raises:
            CheckpointError: it is missing, damaged, or holds the acting network only.
        """
        from qmix_lightning.policies import open_policy

        stored = open_policy(checkpoint_path)
        learner = stored.build_learner()
        if learner is None:
            raise CheckpointError(f"{stored.source} holds the acting network only: use qmix_lightning.load")
        module = cls(learner=learner, optimizer=optimizer or _no_optimizer, episode_metrics=stored.spec.episode_metrics)
        return module if map_location is None else module.to(map_location)

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def recorded(self) -> dict[str, Any]:
        """Return the entries of a checkpoint that say which run it is of."""
        return {} if self.metadata is None else self.metadata.to_payload()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint.update(self.recorded())
        checkpoint["env_steps"] = self.trainer.datamodule.counters.env_steps  # pyright: ignore[reportAttributeAccessIssue]
        rewind_loops(checkpoint["loops"]["fit_loop"], updates=checkpoint["global_step"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Lightning converts the parameters only after it has filled them, which would round those of 64 bits.
        self.trainer.precision_plugin.convert_module(self)


def _no_optimizer(groups: list[dict[str, Any]]) -> Optimizer:
    raise ConfigurationError("to train on: TeamModule.load_from_checkpoint(path, optimizer=...)")


@torch.no_grad()
def summarize_returns(learner: Learner, batch: TrajectoryBatch) -> Tensor | None:
    """Return the fields of :class:`PlayedReturns` as one tensor, without waiting for the device."""
    returns = learner.played_returns(batch)
    if returns is None:
        return None
    counted = returns.where(batch.filled, returns.new_zeros(()))
    # Costs that go on behind a limit make returns that values only reach from above: a reward, the return of a row's
    # last step, is no less a bound.
    bounds = torch.maximum(returns, batch.reward.to(returns.dtype))
    highest = bounds.where(batch.filled, returns.new_full((), -math.inf)).amax()
    return torch.stack([highest, counted.sum(), counted.square().sum(), batch.filled.sum().to(returns.dtype)])


def diverged(part: str, update: int) -> RunDiverged:
    """Return the error of a run whose loss, gradient, network or optimiser has become NaN or infinite."""
    return RunDiverged(
        f"a {part} was not finite by update {update}, so the run has diverged: lower optimizer.lr or "
        "optimizer.max_grad_norm"
    )


def rewind_loops(fit_loop: dict[str, Any], updates: int) -> None:
    """Make the saved progress of Lightning's loops that of a run between two epochs.

    Lightning's own bookkeeping of a loop saved in the middle decides by guesses which hooks to repeat, and skips a
    validation that was due. Here an epoch is only a range of environment steps, kept in the data module's
    counters, so the loops start at an epoch's beginning: ``updates`` optimiser steps behind them, epochs
    counted, nothing half done.
    """
    epoch = fit_loop["epoch_progress"]
    batch = fit_loop["epoch_loop.batch_progress"]
    done = epoch["current"]["processed"]
    if batch["is_last_batch"] and epoch["current"]["ready"] > done:
        done += 1
    for tracker in (epoch["total"], epoch["current"]):
        tracker.update(dict.fromkeys(tracker, done))
    batch["is_last_batch"] = False
    batch["total"].update(dict.fromkeys(batch["total"], updates))
    batch["current"].update(dict.fromkeys(batch["current"], 0))
    optimizer = fit_loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
    for progress in optimizer.values():
        progress["total"].update(dict.fromkeys(progress["total"], updates))
        progress["current"].update(dict.fromkeys(progress["current"], 0))
    evaluation = fit_loop["epoch_loop.val_loop.batch_progress"]
    evaluation["is_last_batch"] = False
    for tracker in (evaluation["total"], evaluation["current"]):
        tracker.update(dict.fromkeys(tracker, 0))
    fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] = updates
