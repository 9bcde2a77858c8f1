"""Read the policy of a checkpoint, and what of its configuration a file may decide."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from qmix_lightning.checkpoint.files import read_checkpoint
from qmix_lightning.config.resume import fill_missing_defaults
from qmix_lightning.config.run_config import validate
from qmix_lightning.config.trust import trusted_config
from qmix_lightning.errors import CheckpointError
from qmix_lightning.policies.spec import read_spec
from qmix_lightning.policies.stored import POLICY_PREFIX, Provenance, StoredPolicy
from qmix_lightning.runtime.text import printable_items

__all__ = ["read_checkpoint_policy"]

_LEARNER = "learner."


def read_checkpoint_policy(path: Path) -> StoredPolicy:
    """Return the policy of a ``.ckpt`` of this package.

    Raises:
        CheckpointError: missing, damaged, hostile, or not one of this project's.
    """
    payload = read_checkpoint(path)
    config = validate(fill_missing_defaults(trusted_config(payload["config"], path), path))
    if (config.num_threads or 1) > 1024:
        raise CheckpointError(f"{path} asks for {config.num_threads} threads")
    state = payload["state_dict"]
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path} holds no networks")
    tensors: dict[str, Tensor] = {
        name.removeprefix(_LEARNER): value
        for name, value in state.items()
        if isinstance(name, str) and name.startswith(_LEARNER) and isinstance(value, Tensor)
    }
    return StoredPolicy(
        source=str(path),
        spec=read_spec(payload["spec"], path),
        env=config.env,
        agent=config.agent,
        mixer=config.mixer,
        algorithm=config.algorithm,
        weights={n.removeprefix(POLICY_PREFIX): v for n, v in tensors.items() if n.startswith(POLICY_PREFIX)},
        learner_weights={n: v for n, v in tensors.items() if not n.startswith(POLICY_PREFIX)},
        mask_before_softmax=bool(config.algorithm.get("mask_before_softmax", True)),
        provenance=Provenance(
            seed=config.seed,
            env_steps=_count(payload["env_steps"], path),
            num_threads=config.num_threads or 1,
            versions=printable_items(payload.get("versions")),
        ),
    )


def _count(value: object, path: Path) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise CheckpointError(f"{path} holds no number of environment steps")
    return value
