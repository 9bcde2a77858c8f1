"""Find what a reference names on this machine; opens nothing, and imports no torch.

In this order: the path of a policy folder, of a ``.ckpt`` or of a run folder (its ``best.ckpt``, else its
``last.ckpt``); ``last`` or ``best`` with a run folder; ``hf://owner/name@revision``; the name of a policy in the zoo.
"""

from __future__ import annotations

from pathlib import Path

from qmix_lightning.config.policy_config import OF_A_RUN
from qmix_lightning.errors import CheckpointError, ConfigurationError
from qmix_lightning.runtime.text import did_you_mean, printable

__all__ = ["HUB", "LEARNER", "OPTIMIZER", "POLICY", "POLICY_FILE", "find_policy"]

POLICY_FILE = "policy.json"
POLICY, LEARNER, OPTIMIZER = "policy.safetensors", "learner.safetensors", "optimizer.safetensors"
"""Files of a policy folder: what it holds, and its tensors; the last two may be missing."""

HUB = "hf://"


def find_policy(reference: str | Path, run_dir: str | Path | None = None) -> Path:
    """Return the policy folder or the ``.ckpt`` that ``reference`` names.

    Args:
        reference: see this module.
        run_dir: the run that ``last`` and ``best`` belong to.

    Raises:
        CheckpointError: there is no such file.
        ConfigurationError: ``last`` or ``best`` without a run folder.
    """
    text = str(reference)
    if text in OF_A_RUN and not Path(text).exists():
        if run_dir is None:
            raise ConfigurationError(f"'{text}' of which run? name its folder with run_dir=")
        return _of_run(Path(run_dir), text)
    if text.startswith(HUB):
        from qmix_lightning.policies.hub import fetch_policy

        return fetch_policy(text)
    path = Path(text)
    if path.is_dir() and (found := _in_folder(path)) is not None:
        return found
    if path.exists() and not path.is_dir():
        return path
    from qmix_lightning.policies.zoo import zoo_folder, zoo_names

    if text in zoo_names():
        return zoo_folder(text)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder with neither a {POLICY_FILE} nor a checkpoint")
    if path.suffix or len(path.parts) > 1:
        raise CheckpointError(f"there is no checkpoint at {path}")
    raise CheckpointError(f"there is no policy '{printable(text)}'{did_you_mean(text, zoo_names())}")


def _in_folder(folder: Path) -> Path | None:
    """Return the policy that a folder holds, if it holds one."""
    if (folder / POLICY_FILE).exists():
        return folder
    for place in (folder / "checkpoints", folder):
        for name in ("best.ckpt", "last.ckpt"):
            if (place / name).exists():
                return place / name
    return None


def _of_run(run_dir: Path, name: str) -> Path:
    path = run_dir / "checkpoints" / f"{name}.ckpt"
    if not path.exists():
        raise CheckpointError(f"there is no checkpoint at {path}")
    return path
