"""Define what a run can be configured with, and check it: a mistake becomes one readable line.

Sections with fixed keys have a dataclass here; sections that name a component (environment, mixer, agent, algorithm,
optimiser) have the component's own keyword arguments as their schema. Both go through one validator, after Hydra has
composed, so a key that came with ``+``, from a YAML file or from a plugin is checked like any other.

This module imports neither torch nor Lightning: ``--help`` and a typing mistake answer at once.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

from qmix_lightning.config.schema import from_mapping, typed
from qmix_lightning.errors import ConfigurationError

__all__ = [
    "SHARES",
    "ExplorationConfig",
    "InterpreterConfig",
    "ReplayConfig",
    "RolloutConfig",
    "RunConfig",
    "check_interpreter",
    "check_kwargs",
    "evaluation_plan",
    "validate",
]


Positive = Annotated[int, Ge(1)]
NotNegative = Annotated[int, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
Seconds = Annotated[float, Gt(0)]


@dataclass(frozen=True)
class ReplayConfig:
    """The ``replay`` section: where batches come from.

    ``batch_size`` and ``capacity`` are episodes over all ranks.
    """

    kind: Literal["uniform", "prioritized", "on_policy"]
    batch_size: Positive
    capacity: Positive
    dtype: Literal["float32", "float16", "bfloat16"]
    storage: Literal["memory", "memmap"]
    device: Literal["auto", "cpu", "device"]
    memmap_dir: str | None
    priority_alpha: Share
    priority_beta: Share
    priority_beta_anneal_steps: NotNegative | None


@dataclass(frozen=True)
class RolloutConfig:
    """The ``rollout`` section: how episodes are collected, and how many updates they make due."""

    num_envs: Positive
    num_eval_envs: Positive
    update_every: Positive
    update_unit: Literal["episodes", "env_steps"]
    updates: Positive
    asynchronous: bool | Literal["auto"]
    collector: Literal["inline", "process", "ray"]
    num_collectors: Positive
    policy_device: Literal["env", "device"]
    on_resume: Literal["replay", "restart"]
    backend: Literal["sync", "process"]
    num_workers: Positive
    step_timeout_s: Seconds
    max_faults: NotNegative
    fault_window_s: Seconds
    python: str | None
    python_env: list[Any]

    @property
    def worker_processes(self) -> int:
        """Return the number of processes that step environments; there are no more of them than environments."""
        has_workers = self.backend == "process" or self.python is not None
        return min(self.num_workers, self.num_envs) if has_workers else 0


@dataclass(frozen=True)
class RayConfig:
    """The ``ray`` section: the cluster of ``rollout.collector=ray``; on the command line only."""

    address: str | None
    num_cpus: Positive


@dataclass(frozen=True)
class ExplorationConfig:
    """The ``exploration`` section: epsilon-greedy; epsilon falls linearly over environment steps."""

    epsilon_start: Share
    epsilon_finish: Share
    epsilon_anneal_steps: NotNegative


@dataclass(frozen=True)
class RunConfig:
    """Configuration of a run, everything that defines it; the groups mirror ``conf/``."""

    preset: str | None
    seed: NotNegative
    total_env_steps: Positive
    eval_interval: Positive | Literal["auto"]
    eval_episodes: Positive | Literal["auto"]
    checkpoint_interval: Positive
    run_dir: str | None
    ckpt_path: str | None
    init_from: str | None
    init_parts: Literal["all", "agents"]
    num_threads: Positive | None
    matmul_precision: Literal["highest", "high", "medium"]
    objective: str | None
    env: dict[str, Any]
    mixer: dict[str, Any]
    agent: dict[str, Any]
    algorithm: dict[str, Any]
    replay: ReplayConfig
    rollout: RolloutConfig
    ray: RayConfig
    exploration: ExplorationConfig
    optimizer: dict[str, Any]
    trainer: dict[str, Any]
    logger: dict[str, Any]
    callbacks: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers, as ``config.yaml`` and a checkpoint hold them."""
        return asdict(self)


@dataclass(frozen=True)
class InterpreterConfig:
    """The part of the ``rollout`` section that commands share which only play episodes: another Python for them."""

    python: str | None = None
    python_env: list[Any] = field(default_factory=list[Any])


def validate(given: Mapping[str, Any]) -> RunConfig:
    """Check a composed configuration and return it as a :class:`RunConfig`.

    Args:
        given: plain containers, interpolations resolved.

    Raises:
        ConfigurationError: an unknown key (with the closest known one), a wrong type, or values that do not fit
            together.
    """
    if "experiment" in given:
        raise ConfigurationError("an experiment's file must begin with the line '# @package _global_'")
    config = from_mapping(RunConfig, resolve_shares(_name_preset(given)), "")
    for section in ("env", "mixer", "agent", "algorithm", "optimizer"):
        if not isinstance(getattr(config, section).get("name"), str):
            raise ConfigurationError(f"{section}.name must be the name of one of {section}'s choices")
    _check_values(config)
    return config


SHARES = (
    "eval_interval",
    "checkpoint_interval",
    "exploration.epsilon_anneal_steps",
    "optimizer.lr_anneal_steps",
    "replay.priority_beta_anneal_steps",
)
"""Settings in environment steps that may be given as a share of the budget, ``20%``."""


def resolve_shares(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with shares of the budget as environment steps; what cannot be one stays, to be refused.

    A run keeps the numbers: going on with a larger budget does not stretch what it did.
    """
    tree = {name: dict(value) if isinstance(value, Mapping) else value for name, value in given.items()}
    budget = tree.get("total_env_steps")
    for key in SHARES:
        *parents, last = key.split(".")
        section = tree.get(parents[0]) if parents else tree
        if not isinstance(section, dict) or not isinstance(value := section.get(last), str):
            continue
        if match := re.fullmatch(r"(\d+(?:\.\d+)?) ?%", value):
            if isinstance(budget, int | float) and math.isfinite(budget):  # else the budget is refused
                share = float(match[1]) / 100
                section[last] = max(1, round(budget * share)) if share else 0
        elif value != "auto" or key != "eval_interval":
            raise ConfigurationError(
                f"{key} must be an integer or a share of total_env_steps such as 20%, not {typed(value)}"
            )
    return tree


def _name_preset(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration in which the preset, whose values stand where they belong by now, is only named."""
    preset = given.get("preset")
    return {**given, "preset": preset.get("name")} if isinstance(preset, Mapping) else dict(given)


def evaluation_plan(config: RunConfig, episode_limit: int | None) -> tuple[int, int]:
    """Return the environment steps between evaluations and the episodes of each, with ``auto`` filled in.

    A tenth of the budget and 32 episodes, as long as evaluating takes a fifth of the environment steps at most: then
    evaluations are rarer, and after the whole budget shorter. At least one episode is played.

    Args:
        config: validated.
        episode_limit: the longest episode in steps, ``None`` if there is no limit.
    """
    interval, episodes, budget = config.eval_interval, config.eval_episodes, config.total_env_steps
    longest = episode_limit or 1
    if interval == "auto":
        wanted = _EVAL_EPISODES if episodes == "auto" else episodes
        interval = min(budget, max(1, budget // 10, 5 * wanted * longest))
    if episodes == "auto":
        episodes = max(1, min(_EVAL_EPISODES, interval // (5 * longest)))
    return interval, episodes


_EVAL_EPISODES = 32


def check_interpreter(path: str | None, variables: list[Any]) -> None:
    """Check the path of another Python, and the names of the environment variables that it receives.

    Raises:
        ConfigurationError: it cannot be one.
    """
    if path is not None and not os.path.isfile(path):
        raise ConfigurationError(f"rollout.python={path}: there is no such file; the path of a Python is needed")
    wrong = [name for name in variables if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_]\w*", name)]
    if wrong:
        raise ConfigurationError(f"rollout.python_env holds {typed(wrong[0])}: names of variables are needed")
    if variables and path is None:
        raise ConfigurationError("rollout.python_env is for another Python, which rollout.python=PATH names")


def check_kwargs(env: Mapping[str, Any]) -> None:
    """Refuse keyword arguments of an environment that are no mapping."""
    if not isinstance(env.get("kwargs", {}), Mapping):
        raise ConfigurationError(f"env.kwargs must be a mapping {{key: value}}, not {typed(env['kwargs'])}")


_RESERVED_TRAINER_KEYS = {
    "callbacks": "callbacks.<name>._target_=...",
    "logger": "logger.<name>._target_=...",
    "default_root_dir": "run_dir=...",
    "plugins": "trainer.strategy and trainer.precision",
}
"""Arguments of the Trainer that have keys of their own -> what to set instead."""


def _check_values(config: RunConfig) -> None:
    """Check values and how they fit together, all in one place."""
    if config.replay.batch_size > config.replay.capacity:
        raise ConfigurationError(
            f"replay.batch_size ({config.replay.batch_size}) is larger than replay.capacity ({config.replay.capacity})"
        )
    if config.replay.kind == "on_policy":
        _check_rounds(config)
    _check_collector(config)
    check_kwargs(config.env)
    check_interpreter(config.rollout.python, config.rollout.python_env)
    for name, instead in _RESERVED_TRAINER_KEYS.items():
        if name in config.trainer:
            raise ConfigurationError(f"trainer.{name} is set by this package: use {instead}")
    if config.trainer.get("enable_checkpointing") is False or config.trainer.get("barebones"):
        raise ConfigurationError(
            "a run always writes its checkpoints and metrics.csv: trainer.barebones must be false, "
            "trainer.enable_checkpointing true"
        )
    clip = config.trainer.get("gradient_clip_val")
    if isinstance(clip, int | float) and clip < 0:
        raise ConfigurationError(f"trainer.gradient_clip_val must not be negative, but is {clip}")
    if config.trainer.get("accumulate_grad_batches") not in (None, 1):
        raise ConfigurationError(
            "trainer.accumulate_grad_batches must be 1: an update is one optimiser step; raise replay.batch_size"
        )


def _check_collector(config: RunConfig) -> None:
    """Check what goes with a collector elsewhere than in the training process."""
    rollout = config.rollout
    if rollout.collector != "inline" and rollout.policy_device == "device":
        raise ConfigurationError(
            f"rollout.collector={rollout.collector} acts on the CPU, in processes of its own: rollout.policy_device "
            "must be env"
        )
    if rollout.collector == "ray":
        # Where opponents stand would be missing in a checkpoint.
        if config.env.get("team") is not None or config.env.get("opponents") is not None:
            raise ConfigurationError(
                "env.team leaves others to env.opponents, which are played by rollout.collector=inline or process, not "
                "by ray"
            )
        if rollout.num_collectors > rollout.num_envs:
            raise ConfigurationError(
                f"rollout.num_collectors ({rollout.num_collectors}) is larger than rollout.num_envs "
                f"({rollout.num_envs}), which they share"
            )
    elif config.ray.address is not None:
        raise ConfigurationError("ray.address is for rollout.collector=ray")
    if config.ray.address is not None and not re.fullmatch(r"auto|[\w.-]+:\d+", config.ray.address):
        raise ConfigurationError(f"ray.address must be auto or HOST:PORT of a cluster's head, not {config.ray.address}")


def _check_rounds(config: RunConfig) -> None:
    """Check the sizes of on-policy rounds.

    A round is what is collected between updates, is drawn without rest, and gives every environment an episode.
    """
    replay, rollout = config.replay, config.rollout
    if rollout.update_unit != "episodes" or rollout.update_every != replay.capacity:
        raise ConfigurationError(
            "replay=on_policy learns from whole rounds: rollout.update_unit must be episodes and rollout.update_every "
            f"equal to replay.capacity ({replay.capacity}), not {rollout.update_every} {rollout.update_unit}; "
            "rollout.update_every='${replay.capacity}' keeps them equal"
        )
    if replay.capacity % replay.batch_size:
        raise ConfigurationError(
            f"replay.capacity ({replay.capacity}) must be a multiple of replay.batch_size ({replay.batch_size}): every "
            "episode of a round is learned from equally often"
        )
    if rollout.num_envs > replay.capacity:
        raise ConfigurationError(
            f"a round of {replay.capacity} episodes (replay.capacity) leaves some of {rollout.num_envs} environments "
            "(rollout.num_envs) without one"
        )
    if rollout.asynchronous is True:
        raise ConfigurationError(
            "replay=on_policy learns from what the present policy did: rollout.asynchronous must be false or auto"
        )
