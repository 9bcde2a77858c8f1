"""What a run can be configured with, and the checks that turn a mistake into one readable line.

Sections with fixed keys have a dataclass here; sections that name a component (environment, mixer, agent, algorithm,
optimiser) have the component's own keyword arguments as their schema. Both go through one validator, after Hydra has
composed, so a key that came with ``+``, from a YAML file or from a plugin is checked like any other.

This module imports neither torch nor Lightning: ``--help`` and a typing mistake answer at once.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin

from qmix_lightning.errors import ConfigurationError
from qmix_lightning.registry import did_you_mean

__all__ = [
    "EvalConfig",
    "ExplorationConfig",
    "ReplayConfig",
    "RolloutConfig",
    "RunConfig",
    "check_resumable",
    "check_settings",
    "settings_of",
    "validate",
    "validate_eval",
]


@dataclass(frozen=True)
class ReplayConfig:
    """Where batches come from. ``batch_size`` and ``capacity`` are episodes over all ranks."""

    kind: Literal["uniform", "prioritized", "on_policy"]
    batch_size: int
    capacity: int
    dtype: Literal["float32", "float16", "bfloat16"]
    storage: Literal["memory", "memmap"]
    device: Literal["auto", "cpu", "device"]
    memmap_dir: str | None
    priority_alpha: float
    priority_beta: float
    priority_beta_anneal_steps: int | None


@dataclass(frozen=True)
class RolloutConfig:
    """How episodes are collected, and how many updates they buy."""

    num_envs: int
    num_eval_envs: int
    update_every: int
    update_unit: Literal["episodes", "env_steps"]
    updates: int
    pipelined: bool | Literal["auto"]
    collector: Literal["here", "process"]
    policy_device: Literal["env", "device"]
    capture: Literal["auto", "off"]
    on_resume: Literal["replay", "restart"]
    backend: Literal["sync", "process"]
    num_workers: int
    step_timeout_s: float
    max_faults: int
    fault_window_s: float


@dataclass(frozen=True)
class ExplorationConfig:
    """Epsilon-greedy; epsilon falls linearly over environment steps."""

    epsilon_start: float
    epsilon_finish: float
    epsilon_anneal_steps: int


@dataclass(frozen=True)
class RunConfig:
    """Everything that defines a run; the groups mirror ``conf/``."""

    seed: int
    total_env_steps: int
    eval_interval: int
    eval_episodes: int
    checkpoint_interval: int
    run_dir: str | None
    ckpt_path: str | None
    num_threads: int | None
    matmul_precision: Literal["highest", "high", "medium"]
    env: dict[str, Any]
    mixer: dict[str, Any]
    agent: dict[str, Any]
    algorithm: dict[str, Any]
    replay: ReplayConfig
    rollout: RolloutConfig
    exploration: ExplorationConfig
    optimizer: dict[str, Any]
    trainer: dict[str, Any]
    logger: dict[str, Any]
    callbacks: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, as ``config.yaml`` and a checkpoint hold them."""
        return asdict(self)


@dataclass(frozen=True)
class EvalConfig:
    """What ``qmix-eval`` can be asked."""

    ckpt_path: str
    episodes: int
    num_envs: int
    seed: int | None
    env: dict[str, Any]
    output: str | None


# -- the validator ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Key:
    hint: Any
    required: bool
    bundle: str | None = None
    """The dataclass argument that this key is a field of."""


def _describe(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(_plain, get_args(hint)))
    if get_origin(hint) in (typing.Union, types.UnionType):
        literals = [v for a in get_args(hint) if get_origin(a) is Literal for v in get_args(a)]
        parts = [f"one of {', '.join(dict.fromkeys(map(_plain, literals)))}"] if literals else []
        others = [a for a in get_args(hint) if get_origin(a) is not Literal]
        return " or ".join([*parts, *("null" if a is type(None) else _describe(a) for a in others)])
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a text", list: "a list"}
    names |= {dict: "a mapping {key: value}", Mapping: "a mapping {key: value}"}
    kind = get_origin(hint) or hint
    return names.get(kind) or getattr(kind, "__name__", str(hint))


def _plain(value: Any) -> str:
    """A value as YAML and the command line write it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _typed(value: Any) -> str:
    """The same with texts in quotes."""
    return repr(value) if isinstance(value, str) else _plain(value)


def _coerce(value: Any, hint: Any, path: str) -> Any:
    """``value`` as ``hint``, or one line that says what was expected."""
    origin = get_origin(hint)
    wrong = ConfigurationError(f"{path} must be {_describe(hint)}, not {_typed(value)}")
    if hint is Any or hint is inspect.Parameter.empty:
        return value
    if origin is Literal:
        if not any(value == option and type(value) is type(option) for option in get_args(hint)):  # 1 is not true
            hint_text = did_you_mean(str(value), map(str, get_args(hint)))
            raise ConfigurationError(f"{path} must be {_describe(hint)}, not {_typed(value)}{hint_text.split(';')[0]}")
        return value
    if origin in (typing.Union, types.UnionType):
        for option in sorted(get_args(hint), key=lambda h: not (isinstance(h, type) and type(value) is h)):
            try:
                return _coerce(value, option, path)
            except ConfigurationError:
                continue
        raise wrong
    if hint is type(None) or hint is None:
        if value is not None:
            raise wrong
        return None
    if is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise wrong
        return _from_mapping(typing.cast(type, hint), value, path)
    if hint is bool:
        if not isinstance(value, bool):
            raise wrong
        return value
    if hint is int:
        if isinstance(value, float) and value.is_integer():
            return int(value)  # total_env_steps=1e6
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong
        return value
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise wrong
        return float(value)
    if hint is str:
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise wrong
        return str(value)
    container = origin or hint
    if isinstance(container, type) and not isinstance(value, container):
        raise wrong
    return value


def _check_keys(given: Mapping[str, Any], known: Mapping[str, _Key], path: str) -> dict[str, Any]:
    prefix = f"{path}." if path else ""
    for name in given:
        if name not in known:
            # The section is right already: what counts is how close the name in it is.
            raise ConfigurationError(f"unknown key '{prefix}{name}'{did_you_mean(name, known, prefix)}")
    missing = [name for name, key in known.items() if key.required and name not in given]
    if missing:
        raise ConfigurationError(f"missing value: {', '.join(prefix + name for name in missing)}")
    return {name: _coerce(value, known[name].hint, f"{prefix}{name}") for name, value in given.items()}


def _from_mapping(cls: type, given: Mapping[str, Any], path: str) -> Any:
    return cls(**_check_keys(given, _field_keys(cls), path))


def _bundle_of(factory: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    """The dataclass that a required keyword is annotated with, ``None`` if it is something else."""
    annotation = parameter.annotation
    if parameter.kind is not inspect.Parameter.KEYWORD_ONLY or parameter.default is not inspect.Parameter.empty:
        return None
    if isinstance(annotation, str):
        function = factory.__init__ if inspect.isclass(factory) else factory
        annotation = getattr(inspect.unwrap(function), "__globals__", {}).get(annotation)
    return annotation if inspect.isclass(annotation) and is_dataclass(annotation) else None


def _field_keys(cls: Any, bundle: str | None = None) -> dict[str, _Key]:
    hints = typing.get_type_hints(cls)
    return {
        f.name: _Key(hints[f.name], f.default is MISSING and f.default_factory is MISSING, bundle) for f in fields(cls)
    }  # fmt: skip


def _signature_keys(factory: Callable[..., Any], provided: Iterable[str]) -> tuple[dict[str, _Key], bool]:
    """The keyword arguments that are left to configuration, and whether any other is taken too.

    An argument that is a dataclass stands for its fields: components share settings without repeating them.
    """
    names = {"int": int, "float": float, "bool": bool, "str": str, "None": None, "Any": Any, "list": list, "dict": dict}
    names |= {"Mapping": Mapping, "Sequence": Sequence}
    keys: dict[str, _Key] = {}
    open_ended = False
    for name, parameter in inspect.signature(factory).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            open_ended = True
        elif parameter.kind is not inspect.Parameter.VAR_POSITIONAL and name not in provided:
            hint: Any = parameter.annotation
            if (bundle := _bundle_of(factory, parameter)) is not None:
                keys |= _field_keys(bundle, name)
                continue
            if isinstance(hint, str):
                try:
                    hint = eval(hint, {"__builtins__": {}, "Literal": Literal}, names)
                except Exception:
                    hint = Any  # an annotation that needs imports of its own is not a schema
            keys[name] = _Key(hint, parameter.default is inspect.Parameter.empty)
    return keys, open_ended


def settings_of(factory: Callable[..., Any], provided: Iterable[str] = ()) -> list[str]:
    """Names of the settings of a component: its keyword arguments without those that the package provides."""
    return list(_signature_keys(factory, set(provided))[0])


def check_settings(
    section: str, given: Mapping[str, Any], factory: Callable[..., Any], provided: Iterable[str] = ()
) -> dict[str, Any]:
    """``given`` checked against the keyword arguments of ``factory``: names, presence and simple types.

    Args:
        section: the group, for messages.
        given: settings without ``name``.
        factory: the component.
        provided: arguments that the package passes itself.

    Raises:
        ConfigurationError: an unknown or missing key, or a wrong type.
    """
    known, open_ended = _signature_keys(factory, set(provided))
    if open_ended:
        known |= {str(name): _Key(Any, False) for name in given if name not in known}
    settings = _check_keys(given, known, section)
    for name, parameter in inspect.signature(factory).parameters.items():
        if name not in provided and (bundle := _bundle_of(factory, parameter)) is not None:
            own = [key for key in settings if key in known and known[key].bundle == name]
            settings[name] = bundle(**{key: settings.pop(key) for key in own})
    return settings


def validate(given: Mapping[str, Any]) -> RunConfig:
    """A composed configuration as a :class:`RunConfig`.

    Args:
        given: plain containers, interpolations resolved.

    Raises:
        ConfigurationError: an unknown key (with the closest known one), a wrong type, or values that do not fit
            together.
    """
    if "experiment" in given:
        raise ConfigurationError("an experiment's file must begin with the line '# @package _global_'")
    config: RunConfig = _from_mapping(RunConfig, given, "")
    for section in ("env", "mixer", "agent", "algorithm", "optimizer"):
        if not isinstance(getattr(config, section).get("name"), str):
            raise ConfigurationError(f"{section}.name must be the name of one of {section}'s choices")
    _check_values(config)
    return config


def validate_eval(given: Mapping[str, Any]) -> EvalConfig:
    """The configuration of ``qmix-eval``, checked like that of a run.

    Raises:
        ConfigurationError: an unknown key, a wrong type, or a number that is too small.
    """
    config: EvalConfig = _from_mapping(EvalConfig, given, "")
    _check_bounds(
        {"episodes": (config.episodes, 1), "num_envs": (config.num_envs, 1), "seed": (config.seed or 0, 0)},
    )
    _check_kwargs(config.env)
    return config


def _check_bounds(at_least: Mapping[str, tuple[int, int]]) -> None:
    for name, (value, bound) in at_least.items():
        if value < bound:
            raise ConfigurationError(f"{name} must be at least {bound}, not {value}")


def _check_kwargs(env: Mapping[str, Any]) -> None:
    if not isinstance(env.get("kwargs", {}), Mapping):
        raise ConfigurationError(f"env.kwargs must be a mapping {{key: value}}, not {_typed(env['kwargs'])}")


_OURS = {
    "callbacks": "callbacks.<name>._target_=...",
    "logger": "logger.<name>._target_=...",
    "default_root_dir": "run_dir=...",
    "plugins": "trainer.strategy and trainer.precision",
}
"""Arguments of the Trainer that have keys of their own."""


def _check_values(config: RunConfig) -> None:
    """Cross-field checks, all in one place."""
    at_least = {
        "total_env_steps": (config.total_env_steps, 1),
        "eval_interval": (config.eval_interval, 1),
        "eval_episodes": (config.eval_episodes, 1),
        "checkpoint_interval": (config.checkpoint_interval, 1),
        "num_threads": (1 if config.num_threads is None else config.num_threads, 1),
        "replay.batch_size": (config.replay.batch_size, 1),
        "replay.capacity": (config.replay.capacity, 1),
        "rollout.num_envs": (config.rollout.num_envs, 1),
        "rollout.num_eval_envs": (config.rollout.num_eval_envs, 1),
        "rollout.update_every": (config.rollout.update_every, 1),
        "rollout.updates": (config.rollout.updates, 1),
        "rollout.num_workers": (config.rollout.num_workers, 1),
        "rollout.max_faults": (config.rollout.max_faults, 0),
        "exploration.epsilon_anneal_steps": (config.exploration.epsilon_anneal_steps, 0),
        "replay.priority_beta_anneal_steps": (config.replay.priority_beta_anneal_steps or 0, 0),
        "seed": (config.seed, 0),
    }
    _check_bounds(at_least)
    for name in ("epsilon_start", "epsilon_finish"):
        value = getattr(config.exploration, name)
        if not 0.0 <= value <= 1.0:
            raise ConfigurationError(f"exploration.{name} must be between 0 and 1, not {value}")
    for name in ("step_timeout_s", "fault_window_s"):
        if not getattr(config.rollout, name) > 0:
            raise ConfigurationError(f"rollout.{name} must be more than 0, not {getattr(config.rollout, name)}")
    for name in ("priority_alpha", "priority_beta"):
        value = getattr(config.replay, name)
        if not 0.0 <= value <= 1.0:
            raise ConfigurationError(f"replay.{name} must be between 0 and 1, not {value}")
    if config.replay.batch_size > config.replay.capacity:
        raise ConfigurationError(
            f"replay.batch_size ({config.replay.batch_size}) is larger than replay.capacity ({config.replay.capacity})"
        )
    if config.replay.kind == "on_policy":
        _check_rounds(config)
    if config.rollout.collector == "process" and config.rollout.policy_device == "device":
        raise ConfigurationError(
            "rollout.collector=process acts on the CPU, in a process of its own: rollout.policy_device must be env"
        )
    _check_kwargs(config.env)
    for name, instead in _OURS.items():
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


def _check_rounds(config: RunConfig) -> None:
    """A round is what is collected between updates, is drawn without rest, and gives every environment an episode."""
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
    if rollout.pipelined is True:
        raise ConfigurationError(
            "replay=on_policy learns from what the present policy did: rollout.pipelined must be false or auto"
        )


# -- resuming -----------------------------------------------------------------------------------------------------

_MAY_CHANGE = (
    "total_env_steps",
    "eval_interval",
    "eval_episodes",
    "checkpoint_interval",
    "run_dir",
    "ckpt_path",
    "logger",
    "callbacks",
    "replay.storage",
    "replay.memmap_dir",
    "replay.device",
    "rollout.num_eval_envs",
    "rollout.collector",
    "rollout.on_resume",
    "rollout.backend",
    "rollout.num_workers",
    "rollout.step_timeout_s",
    "rollout.max_faults",
    "rollout.fault_window_s",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.log_every_n_steps",
    "trainer.limit_val_batches",
    "trainer.max_time",
    "trainer.profiler",
)
"""What cannot change the past. The kind of device and the number of ranks are compared apart, as they turn out."""


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def check_resumable(saved: Mapping[str, Any], new: Mapping[str, Any], path: Any) -> None:
    """Refuse to go on with a configuration that would have made another past.

    Raises:
        ConfigurationError: names the first keys that differ, with both values.
    """
    before, now = flatten(saved), flatten(new)
    allowed = tuple(f"{name}." for name in _MAY_CHANGE)
    keys = [
        key
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key not in _MAY_CHANGE and not key.startswith(allowed)
    ]
    # Of a component that is another one, its name says it all.
    others = {key.removesuffix("name") for key in keys if key.count(".") == 1 and key.endswith(".name")}
    different = [
        f"{key}={_typed(now.get(key))} (the checkpoint has {_typed(before.get(key))})"
        for key in keys
        if not key.startswith(tuple(others)) or key.endswith(".name")
    ]
    if different:
        more = f" and {len(different) - 3} more" if len(different) > 3 else ""
        raise ConfigurationError(
            f"{path} belongs to another run: {'; '.join(different[:3])}{more}. Resume with the run's own settings, "
            "or start anew without ckpt_path"
        )
