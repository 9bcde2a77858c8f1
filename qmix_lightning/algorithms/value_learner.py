"""Define what every learner with target networks and bootstrapped values shares."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from qmix_lightning.algorithms.base import Learner
from qmix_lightning.algorithms.returns import continuation_mask, lambda_returns, n_step_returns, one_step_targets
from qmix_lightning.nn.running_moments import RunningMoments
from qmix_lightning.runtime.choices import check_choices
from qmix_lightning.runtime.moved import look_up_renamed
from qmix_lightning.types import TrajectoryBatch

__all__ = ["ValueLearner", "ValueSettings", "actions_tp1", "td_errors"]

__getattr__ = look_up_renamed(
    __name__,
    {
        "chosen_values": "qmix_lightning.action_selection:chosen_values",
        "row_errors": "qmix_lightning.algorithms.value_learner:td_errors",
    },
)


_VALUE_HORIZON = 1000
"""Updates over which the statistics of values are remembered: values grow while learning."""


RewardNormalization = Literal["none", "scale", "standardize"]
TargetUpdateMode = Literal["hard", "soft"]
TargetUpdateUnit = Literal["episodes", "updates"]


@dataclass(frozen=True)
class ValueSettings:
    """Settings of a value learner: how values are bootstrapped and normalised, and target networks updated.

    Attributes:
        gamma: discount.
        double_q: select the successor's action with the online network.
        returns: ``one_step``; ``n_step``; ``peng_lambda``: the lambda return over greedy values (PyMARL2's and Hu et
            al.'s "TD(lambda)"); ``td_lambda``: the lambda return over the values of the actions taken.
        n_steps: for ``n_step``.
        td_lambda: for the lambda returns, in [0, 1].
        normalize_rewards: ``none``; ``scale``: divide by the running deviation, once rewards differ; ``standardize``:
            subtract the running mean too, which changes what is best where episodes may end early.
        normalize_values: learn values from the running mean of the discounted returns played, in units of their
            deviation, which both move while learning: PopArt's normalisation without its correction of the last layer
            (van Hasselt et al. 2016, "Learning values across many orders of magnitude").
        target_update_mode: ``hard``: a copy every so often; ``soft``: ``target <- target + tau * (online - target)``
            after every update (Lillicrap et al. 2016).
        target_update_every: hard: how many units between copies (PyMARL: 200 episodes).
        target_update_unit: hard: ``episodes`` or ``updates``.
        target_update_tau: soft.
        dead_agents: what a dead agent is worth to the team. ``zero``: nothing; its steps are not looked at. ``no_op``:
            the value of its no-op, which its network, unrolled over what a dead agent sees, goes on learning (PyMARL).
            Without a mixer the value *is* the agent's target, so that ``zero`` teaches that the team's return ends
            with the agent, but for the rewards played that n-step and lambda returns add up.
    """

    gamma: float
    double_q: bool
    returns: Literal["one_step", "n_step", "peng_lambda", "td_lambda"]
    n_steps: int
    td_lambda: float
    normalize_rewards: RewardNormalization
    normalize_values: bool
    target_update_mode: TargetUpdateMode
    target_update_every: int
    target_update_unit: TargetUpdateUnit
    target_update_tau: float
    dead_agents: Literal["zero", "no_op"] = "zero"  # settings of other packages' learners may not say

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("gamma", "td_lambda"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be in [0, 1], not {getattr(self, name)}")
        for name in ("n_steps", "target_update_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0.0 < self.target_update_tau <= 1.0:
            raise ValueError(f"target_update_tau must be in (0, 1], not {self.target_update_tau}")


class ValueLearner(Learner):
    """Base of the learners with target networks: their target updates, returns and normalisation.

    A subclass names its networks in :meth:`target_pairs` and calls :meth:`returns` with values of successors.
    """

    def __init__(self, settings: ValueSettings) -> None:
        super().__init__()
        self.settings = settings
        self.last_copy = 0
        self._statistics: list[tuple[Tensor, Tensor]] | None = None
        self.reward_moments = None if settings.normalize_rewards == "none" else RunningMoments()
        self.value_moments = RunningMoments(horizon=_VALUE_HORIZON) if settings.normalize_values else None

    def target_pairs(self) -> Iterable[tuple[nn.Module, nn.Module]]:
        """Return each online network with its target."""
        raise NotImplementedError

    def masked(self, batch: TrajectoryBatch, *, skip: Collection[str] = ()) -> TrajectoryBatch:
        """Return what the loss may read of ``batch``, with dead agents as ``settings.dead_agents`` says.

        Args:
            skip: as for :meth:`TrajectoryBatch.mask_invalid`.
        """
        if self.settings.dead_agents == "zero":
            return batch.mask_invalid(skip=skip)
        # What a dead agent sees is read now, so it must be zero.
        return batch.mask_invalid(skip=[name for name in skip if name != "obs"]).with_dead_present()

    # -- returns -------------------------------------------------------------------------------------------------

    def returns(self, batch: TrajectoryBatch, greedy_tp1: Tensor, taken_tp1: Tensor | None = None) -> Tensor:
        """Return targets for a masked batch, in the scale that the networks learn.

        Args:
            batch: ``[B, T]`` steps.
            greedy_tp1: value of the successor's greedy actions as the target networks give it, ``[B, T]`` or
                ``[B, T, N]``.
            taken_tp1: value of the actions taken there, the same shape; only for ``td_lambda``. Where no action was
                taken, at a row's end, the greedy one counts.
        """
        settings = self.settings
        reward = self._rewards(batch)
        continues = continuation_mask(batch.filled, batch.terminated, batch.truncated)
        value_tp1 = greedy_tp1
        if settings.returns == "td_lambda":
            if taken_tp1 is None:
                raise ValueError("td_lambda needs the values of the actions taken")
            here = continues.reshape(*continues.shape, *(1,) * (greedy_tp1.dim() - 2))
            value_tp1 = torch.where(here, taken_tp1, greedy_tp1)
        if self.value_moments is not None:
            value_tp1 = self.value_moments.restore(value_tp1)
        if settings.returns == "one_step":
            targets = one_step_targets(reward, batch.terminated, value_tp1, settings.gamma)
        elif settings.returns == "n_step":
            targets = n_step_returns(reward, batch.terminated, continues, value_tp1, settings.gamma, settings.n_steps)
        else:
            targets = lambda_returns(reward, batch.terminated, continues, value_tp1, settings.gamma, settings.td_lambda)
        return targets if self.value_moments is None else self.value_moments.normalize(targets)

    @property
    def needs_taken_values(self) -> bool:
        """Whether :meth:`returns` wants the values of the actions taken."""
        return self.settings.returns == "td_lambda"

    def _rewards(self, batch: TrajectoryBatch) -> Tensor:
        moments = self.reward_moments
        if moments is None:
            return batch.reward
        if self.settings.normalize_rewards == "standardize":
            scaled = moments.normalize(batch.reward)
        else:
            # Rewards that were all the same have no deviation, whose floor would make them ten thousand times as large.
            same = moments.squares <= moments.count * moments.mean.square() * 1e-12
            deviation = moments.deviation(batch.reward)
            scaled = batch.reward / torch.where(same, torch.ones_like(deviation), deviation)
        return scaled.where(batch.filled, scaled.new_zeros(()))

    def unscaled(self, values: Tensor) -> Tensor:
        """Return values in the scale of returns, for logs."""
        return values if self.value_moments is None else self.value_moments.restore(values)

    # -- hooks ---------------------------------------------------------------------------------------------------

    def observe(self, batch: TrajectoryBatch) -> None:
        super().observe(batch)
        if self.reward_moments is not None:
            self.reward_moments.update(batch.reward, batch.filled, self.all_reduce)
        if self.value_moments is not None:
            # Of what was played, never of targets: those are made in this scale, and would raise it without bound as
            # long as the networks' first values are large.
            nothing = torch.zeros_like(batch.reward)
            continues = continuation_mask(batch.filled, batch.terminated, batch.truncated)
            played = lambda_returns(
                self._rewards(batch), batch.terminated, continues, nothing, self.settings.gamma, lambda_=1.0
            )
            self.value_moments.update(played, batch.filled, self.all_reduce)

    @torch.no_grad()
    def played_returns(self, batch: TrajectoryBatch) -> Tensor:
        """Return discounted returns of the steps that were played, ``[B, T]``, in the scale of rewards that is learned.

        After a time limit, which is not the task's end, the row's mean reward is taken to go on.
        """
        rewards = self._rewards(batch)
        steps = batch.filled.sum(dim=1, keepdim=True).clamp(min=1)
        mean = rewards.where(batch.filled, rewards.new_zeros(())).sum(dim=1, keepdim=True) / steps
        gamma = self.settings.gamma
        after = (mean / (1.0 - gamma) if gamma < 1.0 else torch.zeros_like(mean)).expand_as(rewards)
        continues = continuation_mask(batch.filled, batch.terminated, batch.truncated)
        return lambda_returns(rewards, batch.terminated, continues, after, gamma, lambda_=1.0)

    def target_copies(self, *, episodes: int, updates: int) -> int | None:
        settings = self.settings
        if not tuple(self.target_pairs()):
            return None
        if settings.target_update_mode == "soft":
            return updates
        return (episodes if settings.target_update_unit == "episodes" else updates) // settings.target_update_every

    @torch.no_grad()
    def after_update(self, *, episodes: int, updates: int) -> None:
        settings = self.settings
        # Statistics are one for both networks: a target that normalised otherwise would see other inputs.
        if self._statistics is None:
            both = [(online.buffers(), target.buffers()) for online, target in self.target_pairs()]
            self._statistics = [pair for buffers in both for pair in zip(*buffers, strict=True)]
        for source, copied in self._statistics:
            copied.copy_(source)
        if settings.target_update_mode == "soft":
            self._follow(settings.target_update_tau)
            return
        now = episodes if settings.target_update_unit == "episodes" else updates
        if now - self.last_copy >= settings.target_update_every:
            self._follow(1.0)
            self.last_copy = now

    def _follow(self, tau: float) -> None:
        for online, target in self.target_pairs():
            for source, copied in zip(online.parameters(), target.parameters(), strict=True):
                copied.copy_(source) if tau == 1.0 else copied.lerp_(source, tau)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ValueLearner:
        self._statistics = None  # a move to another device recreates the buffers
        return super()._apply(fn, recurse)

    def get_extra_state(self) -> dict[str, int]:
        return {"last_copy": self.last_copy}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.last_copy = int(state["last_copy"])


def actions_tp1(batch: TrajectoryBatch) -> Tensor:
    """Return the actions taken after each step, ``[B, T, N]``; the no-op after a row's last, where none was taken."""
    return torch.cat([batch.actions[:, 1:], torch.zeros_like(batch.actions[:, :1])], dim=1)


@torch.no_grad()
def td_errors(error: Tensor, mask: Tensor, eta: float = 0.9) -> Tensor:
    """Return each row's TD error ``[B]``, over what counts (Kapturowski et al. 2019, sec. 2.3).

    It is ``eta max_t |delta| + (1 - eta) mean_t |delta|``.

    Args:
        error: temporal-difference errors, ``[B, T]`` or ``[B, T, N]``.
        mask: the same shape, bool.
        eta: weight of the largest error.
    """
    size = error.abs().where(mask, error.new_zeros(())).flatten(1)
    mean = size.sum(1) / mask.flatten(1).sum(1).clamp(min=1)
    return eta * size.amax(1) + (1.0 - eta) * mean
