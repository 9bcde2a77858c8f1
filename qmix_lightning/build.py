"""Build a run from a validated configuration: environments, networks, data module, module and trainer."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Trainer

from qmix_lightning.checkpoint.files import RunCheckpointIO
from qmix_lightning.checkpoint.resume import Resumed, check_same_shape
from qmix_lightning.components import build_learner, check_sizes, env_maker, make_component
from qmix_lightning.config.run_config import RunConfig, evaluation_plan
from qmix_lightning.config.schema import check_settings
from qmix_lightning.config.trust import recorded_config, texts
from qmix_lightning.environment import VectorEnv
from qmix_lightning.errors import ConfigurationError
from qmix_lightning.optimizers import OPTIMIZERS
from qmix_lightning.replay.factory import make_store, plan_replay
from qmix_lightning.rollout.process_collector import RemoteEnv
from qmix_lightning.runtime import prng
from qmix_lightning.runtime.signals import StopFlag
from qmix_lightning.runtime.text import did_you_mean
from qmix_lightning.training.callbacks.health import HealthCheck
from qmix_lightning.training.callbacks.metrics_log import MetricsLog
from qmix_lightning.training.callbacks.progress_bar import EnvStepsBar
from qmix_lightning.training.callbacks.run_checkpoint import RunCheckpoint
from qmix_lightning.training.callbacks.run_control import RunControl
from qmix_lightning.training.csv_logger import RunCSVLogger
from qmix_lightning.training.datamodule import ReplayDataModule
from qmix_lightning.training.module import TeamModule
from qmix_lightning.training.profiler import NoProfiler
from qmix_lightning.training.run import Run
from qmix_lightning.training.schedules import EpsilonSchedule, UpdateSchedule
from qmix_lightning.training.summary import versions
from qmix_lightning.vector.factory import Backend
from qmix_lightning.worker.fault_tolerance import FaultLimit

__all__ = ["build_run"]


def _trainer(section: Mapping[str, Any], **provided: Any) -> Trainer:
    """Make Lightning's Trainer; ``trainer.*`` is passed straight through, what it refuses is the user's to correct."""
    settings = check_settings("trainer", section, Trainer, provided)
    if settings.get("profiler") is None and not settings.get("barebones"):
        provided["profiler"] = NoProfiler()
    try:
        return Trainer(**(settings | provided))
    except (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError) as error:
        hint = ": use trainer.accelerator=auto or cpu" if "backend found" in str(error) else ""
        raise ConfigurationError(f"trainer: {' '.join(str(error).split()).rstrip('!')}{hint}") from error


def _instances(section: Mapping[str, Any], group: str) -> list[Any]:
    """Make loggers or callbacks by their ``_target_``, as Hydra's users know it; ``null`` switches one off."""
    made = []
    for name, settings in section.items():
        if settings is None:
            continue
        if not isinstance(settings, Mapping) or "_target_" not in settings:
            raise ConfigurationError(f"{group}.{name} needs a _target_, the class to make")
        if any(
            "${" in text for text in texts(settings)
        ):  # Hydra has resolved what was typed; this would be resolved now
            raise ConfigurationError(f"{group}.{name} holds an interpolation that was not resolved")
        try:
            made.append(instantiate(dict(settings)))
        except Exception as error:
            cause = error.__cause__ or error
            hint = _closest_name(str(settings["_target_"]))
            raise ConfigurationError(f"{group}.{name}: {hint or ' '.join(str(cause).split())}") from error
    return made


def _closest_name(target: str) -> str:
    """Return what is wrong with an address whose module is there and has no such name; empty otherwise."""
    module, _, name = target.rpartition(".")
    found = sys.modules.get(module)
    if found is None or hasattr(found, name):
        return ""
    public = [n for n in vars(found) if not n.startswith("_")]
    return f"'{module}' has no '{name}'{did_you_mean(name, public).split(';')[0]}"


def _loggers(section: Mapping[str, Any], resume_step: int | None) -> list[Any]:
    """Make the user's loggers; those of TensorBoard drop what a resumed run is going to write again."""
    made = dict(section)
    for name, settings in section.items():
        is_board = isinstance(settings, Mapping) and str(settings.get("_target_")).endswith("BoardLogger")
        if is_board and resume_step is not None:
            made[name] = {**settings, "purge_step": resume_step + 1}
    return _instances(made, "logger")


def _environments(config: RunConfig) -> tuple[VectorEnv, Callable[[int], VectorEnv]]:
    """Create this rank's training environments; return them and what creates those for an evaluation's episodes."""
    rollout = config.rollout
    limit = FaultLimit(rollout.max_faults, rollout.fault_window_s)
    backend = Backend(rollout.backend, rollout.num_workers, rollout.step_timeout_s, limit)
    make_env, make_eval_env = env_maker(config.env, backend), env_maker(config.env, backend, evaluation=True)
    if rollout.collector == "process":
        env = RemoteEnv(
            partial(make_env, rollout.num_envs),
            num_envs=rollout.num_envs,
            name=config.env["name"],
            start_s=rollout.step_timeout_s,
        )
    else:
        env = make_env(rollout.num_envs)
    return env, lambda episodes: make_eval_env(min(rollout.num_eval_envs, episodes))


def build_run(config: RunConfig, run_dir: Path, resumed: Resumed | None = None) -> Run:
    """Assemble a run; every rank calls it with the same configuration.

    What a checkpoint says about sizes is compared with the environment and with its tensors before memory is taken.

    Args:
        config: validated.
        run_dir: where the run writes.
        resumed: the checkpoint that it goes on from.
    """
    source = resumed.source if resumed else None
    rollout = config.rollout
    log = MetricsLog()
    health = HealthCheck(log, on_policy=config.replay.kind == "on_policy")
    checkpoint = RunCheckpoint(run_dir, config.checkpoint_interval, source, log)
    rows = RunCSVLogger(run_dir / "metrics.csv")
    checkpoint.csv_loggers = (rows,)
    bar = [] if config.trainer.get("enable_progress_bar") is False else [EnvStepsBar(log)]
    trainer = _trainer(
        config.trainer,
        logger=[rows, *_loggers(config.logger, resumed.checkpoint["env_steps"] if resumed else None)],
        callbacks=[RunControl(), log, health, *bar, *_instances(config.callbacks, "callbacks"), checkpoint],
        plugins=[RunCheckpointIO()],
        default_root_dir=str(run_dir),
    )
    ranks = trainer.world_size
    for name in ("batch_size", "capacity"):
        if getattr(config.replay, name) % ranks:
            raise ConfigurationError(f"replay.{name} ({getattr(config.replay, name)}) must divide by {ranks} ranks")

    env, make_eval_env = _environments(config)
    spec = env.spec
    about = {
        "config": recorded_config(config.to_dict()),
        "spec": spec.to_dict(),
        "world_size": ranks,
        "device": trainer.strategy.root_device.type,
        "versions": versions(config.env["name"]) | dict(getattr(env, "versions", {})),
    }
    if resumed is not None:
        check_same_shape(about, resumed.checkpoint, resumed.path)
        check_sizes(partial(build_learner, config, spec), resumed.checkpoint["state_dict"], "learner.", resumed.path)
    size, replay_device = plan_replay(config, spec, run_dir, trainer)
    torch.manual_seed(int(prng.to_seed(prng.derive_key(config.seed, prng.Purpose.INIT))[0]))
    learner = build_learner(config, spec)
    if learner.on_policy and config.replay.kind != "on_policy":
        raise ConfigurationError(f"algorithm '{config.algorithm['name']}' learns on-policy only: use replay=on_policy")
    optimizer = make_component(OPTIMIZERS, config.optimizer)
    module = TeamModule(learner=learner, optimizer=optimizer, episode_metrics=spec.episode_metrics)
    module.extra_checkpoint = about
    exploration = config.exploration
    eval_interval, eval_episodes = evaluation_plan(config, spec.episode_limit)
    data = ReplayDataModule(
        env=env,
        make_eval_env=make_eval_env,
        policy_of=partial(lambda m: m.learner.policy, module),
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
        asynchronous=rollout.asynchronous is True,
        policy_on_device=rollout.policy_device == "device",
        cuda_graph=rollout.cuda_graph == "auto",
        prepare_round=learner.prepare_round if learner.round_extras else None,
        round_extras=learner.round_extras,
    )
    return Run(trainer, module, data, spec, log, checkpoint, size, replay_device)
