"""The composition root: from a validated configuration to environment, networks, data module, module and trainer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Trainer

from qmix_lightning import keys
from qmix_lightning.agents import AGENTS
from qmix_lightning.agents.inputs import InputBuilder
from qmix_lightning.agents.policy import Policy
from qmix_lightning.algorithms import ALGORITHMS
from qmix_lightning.algorithms.base import Learner
from qmix_lightning.callbacks import MetricsLog, RunCheckpoint, RunControl
from qmix_lightning.checkpoint import RunCheckpointIO
from qmix_lightning.config import ReplayConfig, RunConfig, check_settings, settings_of
from qmix_lightning.datamodule import ReplayDataModule
from qmix_lightning.env_section import parse_env_section
from qmix_lightning.environment import VectorEnv
from qmix_lightning.errors import ConfigurationError
from qmix_lightning.exploration import EpsilonSchedule
from qmix_lightning.loggers import RunCSVLogger
from qmix_lightning.mixers import MIXERS
from qmix_lightning.module import TeamModule
from qmix_lightning.on_policy import RoundStore
from qmix_lightning.optimizers import OPTIMIZERS
from qmix_lightning.prioritized import PrioritizedReplay
from qmix_lightning.profiling import NoProfiler
from qmix_lightning.progress import EnvStepsBar
from qmix_lightning.registry import Registry
from qmix_lightning.remote_collector import RemoteEnv
from qmix_lightning.replay import EpisodeReplay
from qmix_lightning.replay_device import ReplayPlace, choose_place, free_memory
from qmix_lightning.replay_size import ReplaySize, predict_size
from qmix_lightning.schedule import UpdateSchedule
from qmix_lightning.signals import StopFlag
from qmix_lightning.summary import versions
from qmix_lightning.supervised import FaultLimit
from qmix_lightning.types import EnvSpec
from qmix_lightning.vector import Backend, make_vector_env

__all__ = [
    "Run",
    "build_learner",
    "build_policy",
    "build_run",
    "env_maker",
    "make_store",
    "policy_class",
]


@dataclass
class Run:
    """Everything one training run consists of."""

    trainer: Trainer
    module: TeamModule
    data: ReplayDataModule
    spec: EnvSpec
    log: MetricsLog
    checkpoint: RunCheckpoint
    replay_size: ReplaySize
    replay_place: ReplayPlace


def _component(registry: Registry, section: Mapping[str, Any], **provided: Any) -> Any:
    """The component that ``section`` names, made from its settings and what of ``provided`` it asks for."""
    kind = registry.kind
    factory = registry.load(section["name"])
    wanted = inspect.signature(factory).parameters
    given = {key: value for key, value in section.items() if key != "name"}
    # A module without a constructor of its own has torch's, which says that it takes anything.
    schema = _no_settings if getattr(factory, "__init__", None) is torch.nn.Module.__init__ else factory
    try:
        settings = check_settings(kind, given, schema, provided)
        return factory(**settings, **{key: value for key, value in provided.items() if key in wanted})
    except ValueError as error:
        raise ConfigurationError(f"{kind} '{section['name']}': {error}") from error


def _no_settings() -> None:
    """The signature of a component that has none."""


def env_maker(
    section: Mapping[str, Any], backend: Backend | None = None, *, evaluation: bool = False
) -> Callable[[int], VectorEnv]:
    """From the ``env`` section to a function that makes so many environments, in this process or in workers.

    A factory with an ``evaluation`` parameter is told which ones evaluate.
    """
    env = parse_env_section(section)
    backend = backend or Backend()
    told = {"evaluation": True} if evaluation and "evaluation" in inspect.signature(env.factory).parameters else {}
    return partial(_make_envs, env.factory, env.settings | told, name=env.name, backend=backend, **env.adapter)


def _make_envs(factory: Callable[..., Any], settings: Mapping[str, Any], num_envs: int, **options: Any) -> VectorEnv:
    return make_vector_env(factory, settings, num_envs=num_envs, **options)


def build_policy(section: Mapping[str, Any], spec: EnvSpec, kind: type[Policy] = Policy) -> Policy:
    """The acting network for an environment, from the ``agent`` section; ``kind`` is the algorithm's."""
    inputs_keys = settings_of(InputBuilder, ("n_agents", "n_actions", "obs_dim"))
    own = {key: value for key, value in section.items() if key not in inputs_keys}
    given = {key: value for key, value in section.items() if key in inputs_keys}
    sizes = {"n_agents": spec.n_agents, "n_actions": spec.n_actions, "obs_dim": spec.obs_dim}
    try:
        inputs = InputBuilder(**sizes, **check_settings("agent", given, InputBuilder, sizes))
    except ValueError as error:
        raise ConfigurationError(f"agent: {error}") from error
    agent = _component(
        AGENTS,
        own,
        input_dim=inputs.output_dim,
        n_agents=spec.n_agents,
        n_actions=spec.n_actions,
        group_of_agent=spec.group_of_agent,
        obs_entities=spec.obs_entities,
        inputs=inputs,
    )
    return kind(inputs=inputs, agent=agent)


def policy_class(algorithm: str) -> type[Policy]:
    """The kind of acting network that the algorithm of this name trains."""
    learner = ALGORITHMS.load(algorithm)
    if not (inspect.isclass(learner) and issubclass(learner, Learner)):
        raise ConfigurationError(f"algorithm '{algorithm}' must be a class that extends {Learner.__module__}.Learner")
    return learner.policy_class


def build_learner(config: RunConfig, spec: EnvSpec) -> Learner:
    """Networks and learning rule for an environment."""
    kind = policy_class(config.algorithm["name"])
    agent = config.agent["name"]
    if not spec.obs_entities and "obs_entities" in inspect.signature(AGENTS.load(agent)).parameters:
        raise ConfigurationError(
            f"agent '{agent}' needs observations that are sets of entities, and environment '{config.env['name']}' "
            "declares none (lbf, smax, smac and mpe's simple_spread do): use agent=recurrent or agent=feedforward"
        )
    policy = build_policy(config.agent, spec, kind)
    name, mixer_name = config.algorithm["name"], config.mixer["name"]
    if mixer_name != "none" and "mixer" not in inspect.signature(ALGORITHMS.load(name)).parameters:
        raise ConfigurationError(f"algorithm '{name}' mixes no values: mixer must be none, not {mixer_name}")
    mixer = _component(
        MIXERS,
        config.mixer,
        n_agents=spec.n_agents,
        state_dim=spec.state_dim,
        obs_dim=spec.obs_dim,
        n_actions=spec.n_actions,
    )
    return _component(
        ALGORITHMS,
        config.algorithm,
        policy=policy,
        make_policy=partial(build_policy, config.agent, spec, kind),
        mixer=mixer,
        spec=spec,
    )


def make_store(
    config: ReplayConfig, spec: EnvSpec, ranks: int, run_dir: Path, device: torch.device | None = None
) -> EpisodeReplay:
    """Where a rank's episodes go; with a ``device``, their observations and states."""
    capacity, folder = config.capacity // ranks, memmap_folder(config, run_dir)
    if config.kind == "prioritized":
        return PrioritizedReplay(
            spec,
            capacity,
            alpha=config.priority_alpha,
            beta=config.priority_beta,
            beta_anneal_steps=config.priority_beta_anneal_steps,
            dtype=config.dtype,
            folder=folder,
            device=device,
        )
    kinds = {"uniform": EpisodeReplay, "on_policy": RoundStore}
    return kinds[config.kind](spec, capacity, dtype=config.dtype, folder=folder, device=device)


def _place(config: ReplayConfig, size: ReplaySize, spec: EnvSpec, device: torch.device, ranks: int) -> ReplayPlace:
    """Where a rank's observations and states go: ``device`` is its own, ``ranks`` those of its machine."""
    return choose_place(
        config.device,
        accelerator=device,
        in_file=config.storage == "memmap",
        need=size.floats // ranks,
        free=free_memory(device),
        growing=spec.episode_limit is None,
    )


def memmap_folder(config: ReplayConfig, run_dir: Path) -> Path | None:
    """Where the replay is kept on disk, ``None`` if it is in memory."""
    return Path(config.memmap_dir or run_dir) if config.storage == "memmap" else None


def _trainer(section: Mapping[str, Any], **ours: Any) -> Trainer:
    """Lightning's Trainer with ``trainer.*`` passed straight through; what it refuses is the user's to correct."""
    settings = check_settings("trainer", section, Trainer, ours)
    if settings.get("profiler") is None and not settings.get("barebones"):
        ours["profiler"] = NoProfiler()
    try:
        return Trainer(**(settings | ours))
    except (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError) as error:
        raise ConfigurationError(f"trainer: {' '.join(str(error).split())}") from error


def _instances(section: Mapping[str, Any], group: str) -> list[Any]:
    """Loggers or callbacks by their ``_target_``, as Hydra's users know it; ``null`` switches one off."""
    made = []
    for name, settings in section.items():
        if settings is None:
            continue
        if not isinstance(settings, Mapping) or "_target_" not in settings:
            raise ConfigurationError(f"{group}.{name} needs a _target_, the class to make")
        try:
            made.append(instantiate(dict(settings)))
        except Exception as error:
            cause = error.__cause__ or error
            raise ConfigurationError(f"{group}.{name}: {' '.join(str(cause).split())}") from error
    return made


def _loggers(section: Mapping[str, Any], resume_step: int | None) -> list[Any]:
    """The user's loggers; those of TensorBoard drop what a resumed run is going to write again."""
    made = dict(section)
    for name, settings in section.items():
        is_board = isinstance(settings, Mapping) and str(settings.get("_target_")).endswith("BoardLogger")
        if is_board and resume_step is not None:
            made[name] = {**settings, "purge_step": resume_step + 1}
    return _instances(made, "logger")


def _environments(config: RunConfig) -> tuple[VectorEnv, Callable[[int], VectorEnv]]:
    """The training environments of this rank, and what makes those for so many episodes of an evaluation."""
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


def _replay_place(config: RunConfig, spec: EnvSpec, run_dir: Path, trainer: Trainer) -> tuple[ReplaySize, ReplayPlace]:
    """How large the replay is going to be, and where observations and states go; refused if there is no room."""
    replay, nodes, device = config.replay, trainer.num_nodes, trainer.strategy.root_device
    size = predict_size(
        spec,
        capacity=replay.capacity,
        dtype=replay.dtype,
        prioritized=replay.kind == "prioritized",
        total_env_steps=config.total_env_steps,
        folder=memmap_folder(replay, run_dir),
        machines=nodes,
    )
    place = _place(replay, size, spec, device, max(1, trainer.world_size // nodes))
    (size if place.device is None else size.without_floats()).check()
    return size, place


def build_run(config: RunConfig, run_dir: Path, source: Path | None, resume_step: int) -> Run:
    """Assemble a run; every rank calls it with the same configuration.

    Args:
        config: validated.
        run_dir: where the run writes.
        source: the ``checkpoints`` folder of the run it goes on from.
        resume_step: the environment steps of the checkpoint it goes on from.
    """
    rollout = config.rollout
    log = MetricsLog()
    checkpoint = RunCheckpoint(run_dir, config.checkpoint_interval, source, log)
    rows = RunCSVLogger(run_dir / "metrics.csv")
    checkpoint.csv_loggers = (rows,)
    bar = [] if config.trainer.get("enable_progress_bar") is False else [EnvStepsBar(log)]
    trainer = _trainer(
        config.trainer,
        logger=[rows, *_loggers(config.logger, resume_step if source else None)],
        callbacks=[RunControl(), log, *bar, *_instances(config.callbacks, "callbacks"), checkpoint],
        plugins=[RunCheckpointIO()],
        default_root_dir=str(run_dir),
    )
    ranks = trainer.world_size
    for name in ("batch_size", "capacity"):
        if getattr(config.replay, name) % ranks:
            raise ConfigurationError(f"replay.{name} ({getattr(config.replay, name)}) must divide by {ranks} ranks")

    env, make_eval_env = _environments(config)
    spec = env.spec
    size, place = _replay_place(config, spec, run_dir, trainer)
    torch.manual_seed(int(keys.bounded(keys.mix(config.seed, keys.Purpose.INIT))[0]))
    learner = build_learner(config, spec)
    if learner.on_policy and config.replay.kind != "on_policy":
        raise ConfigurationError(f"algorithm '{config.algorithm['name']}' learns on-policy only: use replay=on_policy")
    optimizer = _component(OPTIMIZERS, config.optimizer)
    module = TeamModule(learner=learner, optimizer=optimizer, episode_metrics=spec.episode_metrics)
    module.extra_checkpoint = {
        "config": config.to_dict(),
        "spec": spec.to_dict(),
        "world_size": ranks,
        "device": trainer.strategy.root_device.type,
        "versions": versions() | dict(getattr(env, "versions", {})),
    }
    exploration = config.exploration
    data = ReplayDataModule(
        env=env,
        make_eval_env=make_eval_env,
        policy_of=partial(lambda m: m.learner.policy, module),
        replay=make_store(config.replay, spec, ranks, run_dir, place.device),
        batch_size=config.replay.batch_size,
        schedule=UpdateSchedule(every=rollout.update_every, unit=rollout.update_unit, updates=rollout.updates),
        epsilon=EpsilonSchedule(
            exploration.epsilon_start, exploration.epsilon_finish, exploration.epsilon_anneal_steps
        ),
        seed=config.seed,
        total_env_steps=config.total_env_steps,
        eval_interval=config.eval_interval,
        eval_episodes=config.eval_episodes,
        stop=StopFlag(),
        on_resume=rollout.on_resume,
        pipelined=rollout.pipelined is True,
        policy_on_device=rollout.policy_device == "device",
        capture=rollout.capture == "auto",
    )
    return Run(trainer, module, data, spec, log, checkpoint, size, place)
