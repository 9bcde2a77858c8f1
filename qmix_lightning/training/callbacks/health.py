"""Say, once each and with the cure, that a run is going wrong."""

from __future__ import annotations

import math
import sys
from typing import Any, cast

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from tqdm import tqdm

from qmix_lightning.training.callbacks.metrics_log import MetricsLog, row_is_due
from qmix_lightning.training.datamodule import data_of
from qmix_lightning.training.module import TeamModule

__all__ = ["HealthCheck"]

_LEAST_UPDATES = 300
"""Fewer than this teach a network little."""
_LEAST_BUDGET = 5000
"""Environment steps below which a run is a try-out, of which nobody expects that it learns."""
_ROWS_TO_BELIEVE = 3
"""Logged updates in a row whose values are too high: a single one may be noise."""
_ALIKE = 1e-3
"""Share of the highest return up to which the returns' deviation is rounding."""


class HealthCheck(Callback):
    """Callback that warns on stderr, once each.

    * Values stand far above any return seen: they are bootstrapped from each other.
    * The budget buys few updates, or no copy of the networks to the targets.
    * The team does worse than random play did in the first episodes.
    * Mixed bfloat16 precision on a CPU without units for it, where it is several times slower than float32.
    * Parameters of 16 bits: a target network that follows by 1 % of the difference rounds to where it was.

    Args:
        log: where the logged values come from.
        on_policy: batches are whole rounds, so that no number of updates is too small.
    """

    def __init__(self, log: MetricsLog, *, on_policy: bool = False) -> None:
        self.log_values = log
        self.on_policy = on_policy
        self._told: set[str] = set()
        self._too_high = 0
        self._highest, self._squares, self._sum, self._seen = -math.inf, 0.0, 0.0, 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        slow = trainer.strategy.root_device.type == "cpu" and not _has_bfloat16_units()
        if slow and str(trainer.precision).startswith("bf16"):
            self._warn(
                trainer,
                "precision",
                f"trainer.precision={trainer.precision} on a CPU without bfloat16 units is several times slower than "
                "float32: use trainer.precision=32-true",
            )
        if str(trainer.precision) in ("bf16-true", "16-true"):
            self._warn(
                trainer,
                "narrow parameters",
                f"trainer.precision={trainer.precision} keeps parameters in 16 bits, in which small updates, such as "
                f"those of soft targets, round to nothing: use trainer.precision={'32-true' if slow else 'bf16-mixed'}",
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if row_is_due(trainer):
            self._check_values(trainer, cast(TeamModule, pl_module))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._check_budget(trainer, cast(TeamModule, pl_module))
            self._check_evaluation(trainer)

    def _check_values(self, trainer: Trainer, module: TeamModule) -> None:
        played, value = module.played, self.log_values.last_train.get("train/q_taken")
        if played is None or value is None or not played.steps:
            return
        self._highest = max(self._highest, played.highest)
        self._sum += played.total
        self._squares += played.squares
        self._seen += played.steps
        mean = self._sum / self._seen
        spread = math.sqrt(max(0.0, self._squares / self._seen - mean * mean))
        if spread <= _ALIKE * abs(self._highest):
            # They do not say how large returns get: rare rewards have not been found yet, say.
            spread = max(1.0, abs(self._highest))
        self._too_high = self._too_high + 1 if value > self._highest + spread else 0
        if self._too_high >= _ROWS_TO_BELIEVE:
            self._warn(
                trainer,
                "values",
                f"the team's values average {value:.3g}, where no discounted return was above {self._highest:.3g}: "
                "they are bootstrapped from each other; preset=tuned, a smaller algorithm.gamma or optimizer.lr, or "
                "fewer updates (a larger rollout.update_every) cure it",
            )

    def _check_budget(self, trainer: Trainer, module: TeamModule) -> None:
        data = data_of(trainer)
        counters, budget = data.counters, data.total_env_steps
        if budget < _LEAST_BUDGET or self.on_policy or counters.env_steps < budget / 4:
            return
        left = max(1.0, budget / counters.env_steps)
        updates = round(counters.updates * left)
        if updates < _LEAST_UPDATES:
            self._warn(
                trainer,
                "updates",
                f"{budget:,} environment steps buy only about {updates} updates: raise total_env_steps, or lower "
                "rollout.update_every",
            )
        if module.learner.target_copies(episodes=round(counters.episodes * left), updates=updates) == 0:
            self._warn(
                trainer,
                "copies",
                f"in {budget:,} environment steps the target networks are never updated: lower "
                "algorithm.target_update_every, or use algorithm.target_update_mode=soft",
            )

    def _check_evaluation(self, trainer: Trainer) -> None:
        data, found = data_of(trainer), self.log_values.last_eval
        counters, first = data.counters, data.counters.first_episodes
        if counters.env_steps < data.total_env_steps / 2 or data.total_env_steps < _LEAST_BUDGET or not first:
            return
        mean, half = found.get("eval/return_mean", math.nan), found.get("eval/return_ci95", math.nan)
        count = first["episodes"]
        random = first["return"] / count
        deviation = math.sqrt(max(0.0, first["squares"] / count - random * random))
        if mean + (half if math.isfinite(half) else 0.0) < random - 2.0 * deviation / math.sqrt(count):
            self._warn(
                trainer,
                "evaluation",
                f"the evaluation's return, {mean:.4g}, is below that of random play, {random:.4g} in the first "
                f"{count:.0f} episodes: lower optimizer.lr or the updates per step, or use preset=tuned",
            )

    def _warn(self, trainer: Trainer, kind: str, message: str) -> None:
        if kind not in self._told and trainer.is_global_zero:
            tqdm.write(f"warning: {message}", file=sys.stderr)  # above a bar, if there is one
        self._told.add(kind)

    def state_dict(self) -> dict[str, Any]:
        return {"told": sorted(self._told)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._told = set(state_dict["told"])


def _has_bfloat16_units() -> bool:
    """Return whether this CPU multiplies bfloat16 itself; where torch cannot tell, it is taken to."""
    found = torch.cpu.get_capabilities()
    known = [found[name] for name in ("avx512_bf16", "amx_bf16") if name in found]
    return any(known) or not known
