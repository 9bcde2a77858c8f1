"""Say which typed settings change nothing beside the others, and what they do otherwise than they look."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from qmix_lightning.config.run_config import RunConfig
from qmix_lightning.config.schema import typed
from qmix_lightning.config.tree import flatten, literal

__all__ = ["remarks_on_typed"]


class _Use(NamedTuple):
    """The use of a setting: with which values of which other one, as a message says it and as a check."""

    key: str
    other: str
    wanted: str
    has_effect: Callable[[Any], bool]


def _of(other: str, *values: str, keys: str) -> list[_Use]:
    """Return that ``keys``, of the same section as ``other``, have an effect where ``other`` is one of ``values``."""
    section = other.rpartition(".")[0]
    return [_Use(f"{section}.{key}", other, " or ".join(values), lambda v: v in values) for key in keys.split()]


def _from_two(other: str, key: str) -> _Use:
    return _Use(key, other, "2 or more", lambda layers: layers >= 2)


_USES = [
    *_of("algorithm.returns", "n_step", keys="n_steps"),
    *_of("algorithm.returns", "peng_lambda", "td_lambda", keys="td_lambda"),
    *_of("algorithm.target_update_mode", "hard", keys="target_update_every target_update_unit"),
    *_of("algorithm.target_update_mode", "soft", keys="target_update_tau"),
    _from_two("mixer.hypernet_layers", "mixer.hypernet_dim"),
    _from_two("mixer.attention_layers", "mixer.attention_dim"),
    *_of("optimizer.lr_schedule", "linear", "cosine", keys="lr_anneal_steps lr_final"),
    *_of("replay.kind", "prioritized", keys="priority_alpha priority_beta priority_beta_anneal_steps"),
    *_of("replay.storage", "memmap", keys="memmap_dir"),
    *_of("rollout.collector", "ray", keys="num_collectors"),
    _Use("ray.num_cpus", "rollout.collector", "ray", lambda collector: collector == "ray"),
    _Use("init_parts", "init_from", "POLICY", lambda policy: policy is not None),
    _Use("trainer.gradient_clip_algorithm", "trainer.gradient_clip_val", "a number", lambda limit: limit is not None),
    _Use("optimizer.max_grad_norm", "trainer.gradient_clip_val", "null", lambda limit: limit is None),
]


def remarks_on_typed(config: RunConfig, keys: Collection[str]) -> list[str]:
    """Return a line for each typed setting that changes nothing, and for numbers that do not fit each other.

    Those are a learning rate that rises unasked, and updates of an on-policy round that are no whole epochs.

    Args:
        config: validated.
        keys: the dotted keys that were typed.
    """
    values = flatten(config.to_dict())
    lines = [
        f"{use.key}={typed(values[use.key])} changes nothing: it is for {use.other}={use.wanted}, which is "
        f"{literal(values[use.other])}"
        for use in _USES
        if use.key in keys and use.key in values and use.other in values and not use.has_effect(values[use.other])
    ]
    if "rollout.num_workers" in keys and not config.rollout.worker_processes:
        lines.append(
            f"rollout.num_workers={config.rollout.num_workers} changes nothing: environments step where their "
            "policy acts; rollout.backend=process has workers"
        )
    optimizer = config.optimizer
    lr, final = optimizer.get("lr"), optimizer.get("lr_final")
    falls = optimizer.get("lr_schedule") in ("linear", "cosine") and "optimizer.lr_final" not in keys
    if falls and isinstance(lr, int | float) and isinstance(final, int | float) and final > lr:
        lines.append(
            f"optimizer.lr_final ({final:g}) is above optimizer.lr ({lr:g}), so the learning rate rises: type "
            "optimizer.lr_final too, or optimizer.lr_schedule=constant"
        )
    parts, updates = config.replay.capacity // config.replay.batch_size, config.rollout.updates
    if config.replay.kind == "on_policy" and updates % parts:
        lines.append(
            f"a round of {config.replay.capacity} episodes (replay.capacity) is {parts} minibatches of "
            f"{config.replay.batch_size} (replay.batch_size), and rollout.updates={updates} are {updates / parts:g} "
            "epochs: some episodes are learned from once more than others"
        )
    return lines
