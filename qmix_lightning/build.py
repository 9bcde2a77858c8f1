"""Build a run from a validated configuration: environments, networks, data module, module and trainer."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import Callback, ProgressBar

from qmix_lightning.algorithms.base import Learner
from qmix_lightning.algorithms.pqn import PQN
from qmix_lightning.checkpoint.lightning_io import RunCheckpointIO
from qmix_lightning.checkpoint.manifest import RunMetadata
from qmix_lightning.checkpoint.resume import Resumed, check_same_shape
from qmix_lightning.components import build_learner, check_sizes, env_maker, looks_at, make_component
from qmix_lightning.config.run_config import RunConfig, evaluation_plan
from qmix_lightning.config.trust import recorded_config
from qmix_lightning.environment import VectorEnv
from qmix_lightning.errors import ConfigurationError
from qmix_lightning.optimizers import OPTIMIZERS
from qmix_lightning.policies import open_network, open_policy
from qmix_lightning.policies.initialize import initialize_learner, set_square_averages
from qmix_lightning.replay.factory import fit_capacity, make_store, plan_replay
from qmix_lightning.replay.layout import DTYPES, obs_dtype
from qmix_lightning.rollout.collectors import TrainingEnvs
from qmix_lightning.rollout.process_collector import CollectorProcess
from qmix_lightning.rollout.ray_cluster import RayCluster
from qmix_lightning.runtime import prng
from qmix_lightning.runtime.resources import available_cores, choose_asynchronous
from qmix_lightning.runtime.signals import StopFlag
from qmix_lightning.runtime.text import did_you_mean
from qmix_lightning.runtime.trial import TRIAL, load_trial
from qmix_lightning.training.callbacks.health import HealthCheck
from qmix_lightning.training.callbacks.metrics_log import MetricsLog
from qmix_lightning.training.callbacks.progress_bar import EnvStepsBar
from qmix_lightning.training.callbacks.pruning import Pruning
from qmix_lightning.training.callbacks.run_checkpoint import RunCheckpoint
from qmix_lightning.training.callbacks.run_control import RunControl
from qmix_lightning.training.csv_logger import RunCSVLogger
from qmix_lightning.training.datamodule import ReplayDataModule
from qmix_lightning.training.lightning_parts import in_folder, make_instances, make_loggers, make_trainer
from qmix_lightning.training.module import TeamModule
from qmix_lightning.training.network_check import check_networks
from qmix_lightning.training.run import Run
from qmix_lightning.training.schedules import EpsilonSchedule, UpdateSchedule
from qmix_lightning.training.summary import versions
from qmix_lightning.types import EnvSpec, TrajectoryBatch
from qmix_lightning.vector.factory import Backend, interpreter_of
from qmix_lightning.worker.fault_tolerance import FaultLimit

__all__ = ["build_run"]


def _environments(config: RunConfig, run_dir: Path) -> tuple[TrainingEnvs, Callable[[int], VectorEnv]]:
    """Return this rank's training environments, or where they are, and what creates those of evaluations."""
    rollout = config.rollout
    limit = FaultLimit(rollout.max_faults, rollout.fault_window_s)
    backend = Backend(
        rollout.backend,
        rollout.num_workers,
        rollout.step_timeout_s,
        limit,
        interpreter=interpreter_of(rollout.python, rollout.python_env),
        output=run_dir / "simulator.log",
    )
    given: dict[str, Any] = {"backend": backend, "open_policy": open_network}
    make_env, make_eval_env = env_maker(config.env, **given), env_maker(config.env, **given, evaluation=True)
    if rollout.collector == "process":
        env = CollectorProcess(
            partial(make_env, rollout.num_envs), name=config.env["name"], start_s=rollout.step_timeout_s
        )
    elif rollout.collector == "ray":
        there = replace(backend, output=None)  # the run's folder is on this machine
        env = RayCluster(
            env_maker(config.env, backend=there),
            name=config.env["name"],
            num_envs=rollout.num_envs,
            num_collectors=rollout.num_collectors,
            address=config.ray.address,
            num_cpus=config.ray.num_cpus,
            start_s=rollout.step_timeout_s,
            limit=limit,
        )
    else:
        env = make_env(rollout.num_envs)
    return env, lambda episodes: make_eval_env(min(rollout.num_eval_envs, episodes))


def _asynchronous(config: RunConfig, trainer: Trainer, resumed: Resumed | None) -> bool:
    """Choose whether to collect while an update runs; a resumed run does as it began, since its data depend on it."""
    rollout = config.rollout
    if rollout.asynchronous != "auto":
        asynchronous, reason = rollout.asynchronous, "rollout.asynchronous"
    elif resumed is not None:
        asynchronous, reason = resumed.manifest.asynchronous, "as the run began"
    else:
        asynchronous, reason = choose_asynchronous(
            available_cores(),
            ranks=trainer.num_devices,
            on_policy=config.replay.kind == "on_policy",
            own_process=rollout.collector != "inline",
            num_envs=rollout.num_envs,
            workers=rollout.worker_processes,
        )
    if trainer.is_global_zero:
        what = "while an update runs, by the policy from before it" if asynchronous else "between updates"
        print(f"collecting: {what} ({reason})", flush=True)
    return asynchronous


def _prepare_round(learner: Learner, batch: TrajectoryBatch) -> dict[str, torch.Tensor]:
    return learner.prepare_round(learner.with_state(batch))


def _with_fitting_replay(config: RunConfig, spec: EnvSpec, run_dir: Path) -> RunConfig:
    fitting = fit_capacity(config, spec, run_dir)
    if fitting is not config:
        print(
            f"replay.capacity={fitting.replay.capacity} is chosen, which half of the free room holds: "
            f"{config.replay.capacity} episodes do not fit",
            flush=True,
        )
    return fitting


def _check_objective(objective: str | None, evaluated: list[str]) -> None:
    """Refuse an objective that is no metric of this task's evaluations: the run would end without one."""
    known = [name.removeprefix("eval/") for name in evaluated]
    if objective is not None and objective not in known:
        raise ConfigurationError(
            f"objective={objective}: evaluations have no such metric{did_you_mean(objective, known, 'objective=')}"
        )


def _initialize(module: TeamModule, spec: EnvSpec, config: RunConfig, *, told: bool) -> None:
    """Take over the networks, and RMSprop's state, of what ``init_from`` names."""
    stored = open_policy(str(config.init_from))
    lines = initialize_learner(module.learner, spec, stored, config.init_parts)
    averages = stored.optimizer
    if averages is not None and config.init_parts == "all" and config.optimizer["name"] == "rmsprop":
        module.on_new_optimizer = partial(set_square_averages, network=module.learner, averages=averages)
        lines.append("  RMSprop's state too")
    if told:
        print(*lines, sep="\n", flush=True)


def _trainer(config: RunConfig, run_dir: Path, resumed: Resumed | None, log: MetricsLog, last: Callback) -> Trainer:
    """Make the trainer; ``last`` is called after every other callback."""
    health = HealthCheck(log, on_policy=config.replay.kind == "on_policy")
    callbacks = make_instances(in_folder(config.callbacks, config, run_dir), "callbacks")
    own_bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
    bar = [] if own_bar or config.trainer.get("enable_progress_bar") is False else [EnvStepsBar(log)]
    pruning = [Pruning(load_trial(os.environ[TRIAL]), log, config.objective or "")] if os.environ.get(TRIAL) else []
    return make_trainer(
        config.trainer,
        logger=[RunCSVLogger(run_dir / "metrics.csv"), *make_loggers(config, run_dir, resumed)],
        callbacks=[RunControl(), log, health, *bar, *pruning, *callbacks, last],
        plugins=[RunCheckpointIO(resumed)],
        default_root_dir=str(run_dir),
    )


def _say_what_is_lost(config: RunConfig, spec: EnvSpec, learner: Learner) -> None:
    """Say which choices of networks throw something away that the task has."""
    agent = config.agent["name"]
    if spec.pictures and agent in ("recurrent", "feedforward"):
        shapes = ", ".join("x".join(map(str, picture.shape)) for picture in spec.pictures)
        print(
            f"observations hold pictures ({shapes}), which agent={agent} takes as rows of numbers: agent=convolutional "
            "keeps their shape",
            file=sys.stderr,
        )
    if config.mixer["name"] == "none":
        name, ends = config.algorithm["name"], "every agent learns that the team's reward ends when it dies"
        if config.algorithm.get("dead_agents") == "zero":
            print(f"algorithm.dead_agents=zero without a mixer: {ends}; no_op is PyMARL's way", file=sys.stderr)
        elif isinstance(learner, PQN):
            print(f"algorithm={name} without a mixer: {ends}; algorithm=iql values its no-op", file=sys.stderr)


def _check_absent_entities(config: RunConfig, spec: EnvSpec) -> None:
    """Refuse a replay that rounds what stands for an absent entity: learned from, it would be one in sight."""
    stored = obs_dtype(spec, DTYPES[config.replay.dtype])
    for block in spec.obs_entities if "obs_entities" in looks_at(config.agent["name"]) else ():
        absent = torch.tensor(block.absent)
        if not torch.equal(absent.to(stored).to(absent.dtype), absent):
            raise ConfigurationError(
                f"replay.dtype={config.replay.dtype} rounds {list(block.absent)}, which stand where the environment's "
                f"'{block.name}' are absent, so that agent={config.agent['name']} would see them: set "
                "replay.dtype=float32"
            )


def _learner(config: RunConfig, spec: EnvSpec) -> Learner:
    """Make the networks, the same on every rank."""
    torch.manual_seed(int(prng.to_seed(prng.derive_key(config.seed, prng.Purpose.INIT))[0]))
    learner = build_learner(config, spec)
    check_networks(
        learner, spec, algorithm=config.algorithm["name"], agent=config.agent["name"], mixer=config.mixer["name"]
    )
    _check_absent_entities(config, spec)
    _say_what_is_lost(config, spec, learner)
    if learner.on_policy and config.replay.kind != "on_policy":
        raise ConfigurationError(f"algorithm '{config.algorithm['name']}' learns on-policy only: use replay=on_policy")
    return learner


def build_run(config: RunConfig, run_dir: Path, resumed: Resumed | None = None, *, fit_replay: bool = False) -> Run:
    """Assemble a run; every rank calls it with the same configuration.

    What a checkpoint says about sizes is compared with the environment and with its tensors before memory is taken.

    Args:
        config: validated.
        run_dir: where the run writes.
        resumed: the checkpoint that it goes on from.
        fit_replay: nobody has chosen the replay's capacity, so it may be made to fit; ``Run.config`` has it then.
    """
    log = MetricsLog()
    checkpoint = RunCheckpoint(run_dir, config.checkpoint_interval, resumed.source if resumed else None, log)
    trainer = _trainer(config, run_dir, resumed, log, checkpoint)
    ranks = trainer.world_size
    for name in ("batch_size", "capacity"):
        if getattr(config.replay, name) % ranks:
            raise ConfigurationError(f"replay.{name} ({getattr(config.replay, name)}) must divide by {ranks} ranks")

    env, make_eval_env = _environments(config, run_dir)
    spec = env.spec
    if fit_replay and ranks == 1 and resumed is None:
        config = _with_fitting_replay(config, spec, run_dir)
    metadata = RunMetadata(
        config=recorded_config(config.to_dict()),
        spec=spec.to_dict(),
        world_size=ranks,
        device=trainer.strategy.root_device.type,
        versions=versions(config.env["name"]) | dict(getattr(env, "versions", {})),
    )
    if resumed is not None:
        check_same_shape(metadata, resumed.manifest.run, resumed.path)
        check_sizes(partial(build_learner, config, spec), resumed.manifest.networks, "learner.", resumed.path)
    size, replay_device = plan_replay(config, spec, run_dir, trainer)

    learner = _learner(config, spec)
    optimizer = make_component(OPTIMIZERS, config.optimizer)
    module = TeamModule(learner=learner, optimizer=optimizer, episode_metrics=spec.episode_metrics, metadata=metadata)
    if resumed is None:
        _check_objective(config.objective, module.eval_names)
    if config.init_from is not None and resumed is None:
        _initialize(module, spec, config, told=trainer.global_rank == 0)

    rollout, exploration = config.rollout, config.exploration
    eval_interval, eval_episodes = evaluation_plan(config, spec.episode_limit)
    data = ReplayDataModule(
        env=env,
        make_eval_env=make_eval_env,
        policy=learner.policy,
        replay=make_store(config.replay, spec, ranks, run_dir, replay_device.device),
        batch_size=config.replay.batch_size,
        schedule=UpdateSchedule(every=rollout.update_every, unit=rollout.update_unit, updates=rollout.updates),
        epsilon=EpsilonSchedule(
            exploration.epsilon_start, exploration.epsilon_finish, exploration.epsilon_anneal_steps
        ),
        seed=config.seed,
        total_env_steps=config.total_env_steps,
        eval_interval=eval_interval,
        eval_episodes=eval_episodes,
        stop=StopFlag(),
        on_resume=rollout.on_resume,
        asynchronous=_asynchronous(config, trainer, resumed),
        policy_on_device=rollout.policy_device == "device",
        prepare_round=partial(_prepare_round, learner) if learner.round_extras else None,
        round_extras=learner.round_extras,
    )
    return Run(trainer, module, data, spec, config, log, checkpoint, size, replay_device, metadata)
