"""Provide training batches as a LightningDataModule: collect episodes, add them to the replay, sample.

The training loader yields *placeholders*, which hold nothing. Lightning fetches one item in advance from an iterable
without length; were the placeholder a batch, the data would be one update ahead of the optimiser, and a resumed run
would drift. So the next batch is made in ``on_before_batch_transfer``, right before its update: at a checkpoint no
data is ahead of the optimiser.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from pytorch_lightning import LightningDataModule, Trainer
from torch import Tensor

from qmix_lightning.agents.policy import Policy
from qmix_lightning.checkpoint.segments import SegmentStore
from qmix_lightning.environment import VectorEnv
from qmix_lightning.errors import CheckpointError, EnvironmentFault, RunError, RunInterrupted
from qmix_lightning.replay.episode_replay import EpisodeReplay
from qmix_lightning.replay.on_policy import RoundStore
from qmix_lightning.replay.sampler import ReplaySampler
from qmix_lightning.rollout.background import BackgroundCollector
from qmix_lightning.rollout.collector import Collected
from qmix_lightning.rollout.collectors import RolloutCollector, TrainingEnvs, go_on_from, make_collector
from qmix_lightning.rollout.evaluation import Evaluator
from qmix_lightning.runtime.distributed import all_gather_objects, least_number, rank, sum_numbers, world_size
from qmix_lightning.runtime.kill_points import reached
from qmix_lightning.runtime.signals import STOP_SIGNALS, StopFlag
from qmix_lightning.runtime.text import error_line
from qmix_lightning.training.counters import FIRST_EPISODES, Counters, budget_too_small
from qmix_lightning.training.loaders import PLACEHOLDER, EvaluationLoader
from qmix_lightning.training.schedules import EpsilonSchedule, UpdateSchedule
from qmix_lightning.types import EpisodeStats, TrainBatch, TrajectoryBatch
from qmix_lightning.worker.fault_tolerance import FAULT_KINDS

__all__ = ["ReplayDataModule", "data_of"]


_MADE_UP = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)
"""What contents of a checkpoint raise that no run has written."""


class ReplayDataModule(LightningDataModule):
    """Data module that collects episodes into this rank's replay shard and samples batches from it.

    With a :class:`RoundStore` the data is on-policy: what is collected between updates is a round, dealt beforehand.

    Args:
        env: the training environments of this rank, or where they are collected in; closed with this object.
        make_eval_env: makes the evaluation environments; training never touches them.
        policy: the network that acts, from which parameters are published.
        replay: this rank's shard; its capacity is the rank's share.
        batch_size: episodes in a batch, over all ranks.
        schedule: when updates are due.
        epsilon: exploration over environment steps.
        seed: the run's seed.
        total_env_steps: budget, over all ranks.
        eval_interval: environment steps between evaluations.
        eval_episodes: greedy episodes of an evaluation, over all ranks.
        stop: set by a signal.
        on_resume: ``replay`` plays episodes in flight again, ``restart`` begins new ones.
        policy_on_device: act on the trainer's device, not where the environments' tensors are.
        asynchronous: collect the next round while an update runs; see :mod:`qmix_lightning.rollout.background`.
        prepare_round: computes what the updates of a round need of the networks from before it, see
            :meth:`qmix_lightning.algorithms.base.Learner.prepare_round`; ``None``: nothing.
        round_extras: the names of that.
    """

    def __init__(
        self,
        *,
        env: TrainingEnvs,
        make_eval_env: Callable[[int], VectorEnv],
        policy: Policy,
        replay: EpisodeReplay,
        batch_size: int,
        schedule: UpdateSchedule,
        epsilon: EpsilonSchedule,
        seed: int,
        total_env_steps: int,
        eval_interval: int,
        eval_episodes: int,
        stop: StopFlag,
        on_resume: str,
        asynchronous: bool = False,
        policy_on_device: bool = False,
        prepare_round: Callable[[TrajectoryBatch], dict[str, Tensor]] | None = None,
        round_extras: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self._env = env
        self.make_eval_env = make_eval_env
        self._policy = policy
        self.replay = replay
        self.rounds = replay if isinstance(replay, RoundStore) else None
        self.batch_size = batch_size
        self.schedule = schedule
        self.epsilon = epsilon
        self.seed = seed
        self.total_env_steps = total_env_steps
        self.eval_interval = eval_interval
        self.eval_episodes = eval_episodes
        self.stop = stop
        self.on_resume = on_resume
        self.asynchronous = asynchronous
        self._policy_on_device = policy_on_device
        self._prepare_round = prepare_round
        self._round_extras = round_extras
        self._background = BackgroundCollector()
        self._fault: EnvironmentFault | None = None
        self._agreed_stop = 0
        self.counters = Counters()
        self.act_s, self.env_s = 0.0, 0.0
        self.store: SegmentStore | None = None
        self.collector: RolloutCollector | None = None
        self._evaluator = Evaluator(make_eval_env, seed=seed)
        self._resume_from: dict[str, Any] | None = None
        self._resume_acting: dict[str, Tensor] | None = None
        self._faults_seen: dict[str, dict[str, int]] = {}
        self._restoring = False

    # -- Lightning's hooks ---------------------------------------------------------------------------------------

    def train_dataloader(self) -> Iterator[str]:
        return itertools.repeat(PLACEHOLDER)

    def val_dataloader(self) -> EvaluationLoader:
        return EvaluationLoader(self.evaluate)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return self._next_batch() if isinstance(batch, str) and batch == PLACEHOLDER else batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        if not isinstance(batch, TrainBatch):
            return batch
        dtype = next(self._policy.parameters()).dtype
        return batch.to(device, dtype)

    def setup(self, stage: str) -> None:
        # Ranks on different machines may have chosen differently, and would wait for each other for ever.
        self.asynchronous = bool(least_number(float(self.asynchronous), self._device))

    def teardown(self, stage: str) -> None:
        self._background.close()
        self._env.close()
        self._evaluator.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the run's data, of every rank: each rank writes its own replay, the manifest names all of it."""
        self.batches.apply_priorities()
        mine = {
            # A run that was resumed and collected nothing yet still has its episodes in flight.
            "collector": self.collector.state_dict() if self.collector else self._resume_from,
            "replay": self.store.save(self.replay) if self.store else [],
            "next_id": self.replay.next_id,
            "acting": self._acting_weights(),
            **self.replay.saved_beside(),
        }
        return {
            "counters": asdict(self.counters),
            "asynchronous": self.asynchronous,
            "ranks": all_gather_objects(mine),
        }

    def _acting_weights(self) -> dict[str, Tensor] | None:
        """Return the weights that the rest of a partial rollout is played with, if not the present policy's."""
        if not (self.asynchronous and self.counters.partial_rollout):
            return None
        if self.collector is None:
            return self._resume_acting
        return self.collector.acting_weights()

    @contextlib.contextmanager
    def restoring(self, path: Path | None) -> Generator[None]:
        """Turn what goes wrong before the first update of a resumed run into an error about its checkpoint.

        Contents that are made up raise anything, wherever they are used first.
        """
        self._restoring = path is not None
        try:
            yield
        except (*_MADE_UP, MemoryError, RuntimeError) as error:
            if not self._restoring:
                raise
            raise CheckpointError(f"{path} cannot be resumed: {error_line(error)}") from error

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.counters = Counters.from_dict(state_dict["counters"])
        if self.counters.updates_due > self.schedule.updates * self.counters.env_steps:
            raise CheckpointError(
                f"the checkpoint has {self.counters.updates_due} updates due after {self.counters.env_steps} steps"
            )
        mine = state_dict["ranks"][rank()]
        if self.store is not None:
            self.store.load(self.replay, mine["replay"])
        if self.replay.next_id != mine["next_id"]:
            raise RunError(f"the replay came back with {self.replay.next_id} episodes, not {mine['next_id']}")
        self.replay.restore_beside(mine, self._round_extras)
        self._resume_from, self._resume_acting = mine["collector"], mine.get("acting")

    @functools.cached_property
    def batches(self) -> ReplaySampler:
        """What draws this rank's share of each batch; made when first asked for, since no ranks are known before."""
        return ReplaySampler(self.replay, share=self.batch_size // world_size(), seed=self.seed, rank=rank())

    # -- training ------------------------------------------------------------------------------------------------

    def _collector(self) -> RolloutCollector:
        if self.collector is None:
            dealt = None if self.rounds is None else self.rounds.capacity
            collector = make_collector(
                self._env,
                self._policy,
                seed=self.seed,
                rank=rank(),
                round_episodes=dealt,
                policy_device=self._device if self._policy_on_device else None,
            )
            if self._resume_from is not None:
                go_on_from(self._resume_from, self._resume_acting, collector, self.on_resume)
                self._resume_from = self._resume_acting = None
            self.collector = collector  # only now: one that failed half-way has lost episodes in flight
        return self.collector

    @property
    def _device(self) -> torch.device:
        return self.trainer.strategy.root_device if self.trainer is not None else torch.device("cpu")

    @property
    def finished(self) -> bool:
        """Return whether the budget is spent and no update is due.

        The last update is drawn behind the budget: what was begun within it is played on to where one falls due, also
        by a run that was interrupted meanwhile.
        """
        return self.counters.updated_at >= self.total_env_steps and self.counters.updates_due == 0

    def _next_batch(self) -> TrainBatch:
        """Collect until an update is due, then sample its batch."""
        counters, collector = self.counters, self._collector()
        # The counter moves with the optimiser: the next batch is made only after the update before it.
        unpublished = not counters.partial_rollout
        while True:
            self._raise_if_over()
            if counters.updates_due > 0:
                break
            # What was begun within the budget is played on, a little past it: a round to its update, and, in a run that
            # was interrupted meanwhile, the rest.
            over = counters.env_steps >= self.total_env_steps and not counters.partial_rollout
            if over and counters.updates == 0 and self.rounds is None:
                short = self.batch_size if not self._ready(len(self.replay)) else None
                raise budget_too_small(self.total_env_steps, counters.episodes, short, self.replay.spec)
            steps = self._to_next_update()[0] if self._ready(len(self.replay)) else self._to_end_of_budget()
            if unpublished:
                reached("policy.publish")
                collector.publish(self._policy)
                reached("policy.published")
                unpublished = False
            fault: EnvironmentFault | None = None
            try:
                collected = collector.collect(
                    self.epsilon(counters.round_start), max_steps=steps, interrupted=self._interrupted
                )
            except EnvironmentFault as error:
                # Not raised yet: the other ranks wait for this one's counters, and all save together.
                collected, fault = Collected(interrupted=True), error
            self._account(collected, fault)
        counters.updates_due -= 1
        counters.updates += 1
        counters.updated_at = counters.env_steps
        self._mark_end_of_epoch()
        if self.asynchronous and counters.updates_due == 0 and counters.env_steps < self.total_env_steps:
            self._begin_background_round(collector)  # before drawing: the collector has nothing else to do meanwhile
        trajectories, ids = self._sample()
        return TrainBatch(
            trajectories=trajectories,
            env_steps=counters.env_steps,
            episodes=counters.episodes,
            epsilon=self.epsilon(counters.env_steps),
            episode_ids=ids,
        )

    def _sample(self) -> tuple[TrajectoryBatch, Tensor | None]:
        """Return this rank's share of the update's batch, and the ids of episodes whose TD errors are wanted."""
        counters = self.counters
        if self.rounds is None:
            return self.batches.draw(counters.updates, counters.env_steps, self._device)
        update = self.schedule.updates - counters.updates_due - 1
        epsilon = self.epsilon(counters.round_start)
        if update == 0 and self._prepare_round is not None:
            whole = self.batches.whole_round(epsilon).to(self._device, next(self._policy.parameters()).dtype)
            self.rounds.extras = {name: values.cpu() for name, values in self._prepare_round(whole).items()}
        batch = self.batches.of_round(update, epsilon, self._device)
        if counters.updates_due == 0:  # nothing more is asked of the round
            counters.round_start = counters.env_steps
            self.rounds.extras = {}
        return batch, None

    def update_priorities(self, episode_ids: Tensor, errors: Tensor) -> None:
        """Set priorities from TD errors; see :meth:`ReplaySampler.update_priorities`."""
        self.batches.update_priorities(episode_ids, errors)

    def _to_next_update(self) -> tuple[int | None, int | None]:
        """Return this rank's share of the steps, or of the episodes, until an update is due."""
        counters = self.counters
        steps = self.schedule.steps_to_next(counters.env_steps)
        if steps is not None:
            return max(1, steps // world_size()), None
        return None, max(1, self.schedule.episodes_to_next(counters.episodes) // world_size())

    def _to_end_of_budget(self) -> int | None:
        """Return this rank's share of what is left where episodes need not end, so that nothing waits for one."""
        if self.replay.spec.episode_limit is not None or self.rounds is not None:
            return None
        return max(1, (self.total_env_steps - self.counters.env_steps) // world_size())

    def _interrupted(self) -> bool:
        # Ranks that are interrupted at different moments could not go on as one run, so they play whole rounds.
        return world_size() == 1 and self.stop.is_set()

    def _begin_background_round(self, collector: RolloutCollector) -> None:
        steps, episodes = self._to_next_update()
        epsilon = self.epsilon(self.counters.round_start)
        collector.publish(self._policy)
        self._background.begin(collector, epsilon, steps=steps, episodes=episodes)

    def take_background_round(self) -> None:
        """Add the round that was collected during an update; called after every update, on every rank.

        Raises nothing: a fault or a signal ends the run when the next batch is requested.
        """
        self._restoring = False
        if (result := self._background.result()) is not None:
            self._account(*result)

    def _ready(self, held: int) -> bool:
        return held >= self.batches.share

    def _account(self, collected: Collected, fault: EnvironmentFault | None = None) -> None:
        """Add what every rank collected to the global counters, and count the updates it makes due."""
        self.batches.apply_priorities()  # a new episode has the largest priority so far
        counters = self.counters
        self.act_s += collected.act_s
        self.env_s += collected.env_s
        short = sum(not self._ready(held) for held in self.replay.extend(collected.episodes))
        stats = collected.stats
        names = sorted(self.replay.spec.episode_metrics)
        mine = [
            *(self.stop.signal_number == number for number in STOP_SIGNALS),
            *self._new_faults("training", self._env),
            collected.env_steps,
            len(collected.episodes),
            not self._ready(len(self.replay)),
            short,
            fault is not None,
            sum(value * value for value in stats.returns),
            sum(stats.returns),
            sum(stats.lengths),
            *(sum(stats.metrics.get(name, [])) for name in names),
        ]
        summed = iter(sum_numbers([float(x) for x in mine], self._device))
        asked_by = {number: next(summed) for number in STOP_SIGNALS}  # how many ranks each signal has reached
        counters.count_faults([next(summed) for _ in FAULT_KINDS])
        steps, episodes, unready, short, fatal, squares, *sums = summed
        self._agreed_stop = next((number for number, ranks in asked_by.items() if ranks), 0)
        if fatal:
            self._fault = fault or EnvironmentFault("the environments of another rank failed for good")
        episodes_before = counters.episodes
        counters.env_steps += int(steps)
        counters.episodes += int(episodes)
        if episodes and episodes_before < FIRST_EPISODES:  # one that 0.1.0 began has counted none of them
            counters.add_first_episodes(episodes, sums[0], squares)
        window = counters.window
        for name, value in zip(["episodes", "return", "length", *names], [episodes, *sums], strict=True):
            window[name] = window.get(name, 0.0) + value
        counters.partial_rollout = collected.interrupted or self._fault is not None
        if counters.partial_rollout:  # nothing is due, and policy and epsilon stay, until its rest is played
            return
        if self.rounds is None:
            counters.round_start = counters.env_steps
        counters.count_due(self.schedule, ready=not unready, episodes_before=episodes_before, short=int(short))
        if self.rounds is not None and counters.updates_due and self.collector is not None:
            self.collector.begin_round()

    def _new_faults(self, which: str, env: TrainingEnvs | None) -> list[int]:
        """Return faults of this rank's environments by kind, since the last call; the batched ones have none."""
        now = dict(getattr(env, "faults", {}))
        seen, self._faults_seen[which] = self._faults_seen.get(which, {}), now
        return [now.get(kind, 0) - seen.get(kind, 0) for kind in FAULT_KINDS]

    def _raise_if_over(self) -> None:
        """Raise if the environments failed for good, or if a signal came."""
        if self._fault is not None:
            fault, self._fault = self._fault, None
            raise fault
        self._raise_if_stopped(self._agreed_stop)

    def _raise_if_stopped(self, agreed: int) -> None:
        """Raise if a signal came: ranks agree on it with the counters, one process sees it at once."""
        number = self.stop.signal_number if world_size() == 1 else agreed
        if number:
            raise RunInterrupted(self.stop.signal_number or number)

    def _mark_end_of_epoch(self) -> None:
        """End the epoch with the last update that is due at an evaluation boundary or at the end of the budget."""
        counters = self.counters
        boundary = (counters.evaluated_at // self.eval_interval + 1) * self.eval_interval
        if counters.updates_due == 0 and counters.env_steps >= min(boundary, self.total_env_steps):
            counters.evaluation_pending = True
            if self.trainer is not None:
                # Lightning learns of an iterable's last batch by fetching one too many; here it is known now.
                self.trainer.fit_loop.epoch_loop.batch_progress.is_last_batch = True

    # -- evaluation ----------------------------------------------------------------------------------------------

    def evaluate(self) -> EpisodeStats:
        """Play this rank's share of the greedy episodes; episode i belongs to rank i mod world size."""
        mine = list(range(rank(), self.eval_episodes, world_size()))
        if not mine:
            return EpisodeStats()
        stats = self._evaluator.play(
            self._policy,
            mine,
            device=self._device if self._policy_on_device else None,
            interrupted=self._interrupted,
        )
        self._raise_if_stopped(agreed=0)  # several ranks agree on it in the next round
        return stats

    def evaluated(self) -> None:
        """Mark the pending evaluation as done; every rank calls it."""
        mine = [float(n) for n in self._new_faults("evaluation", self._evaluator.env)]
        self.counters.count_faults(sum_numbers(mine, self._device))
        self.counters.evaluation_pending = False
        self.counters.evaluated_at = self.counters.env_steps


def data_of(trainer: Trainer) -> ReplayDataModule:
    """Return the data module of ``trainer``, which is this package's."""
    return cast(ReplayDataModule, trainer.datamodule)  # pyright: ignore[reportAttributeAccessIssue]
