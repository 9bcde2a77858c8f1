"""Open the policy that a reference names; torch is imported once it is found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qmix_lightning.policies.reference import find_policy

if TYPE_CHECKING:
    from qmix_lightning.agents.policy import Policy
    from qmix_lightning.policies.stored import StoredPolicy

__all__ = ["open_network", "open_policy"]


def open_network(reference: str) -> Policy:
    """Return the acting network that ``reference`` names, as :func:`open_policy` finds it."""
    return open_policy(reference).build()


def open_policy(reference: str | Path, run_dir: str | Path | None = None) -> StoredPolicy:
    """Return the policy that ``reference`` names, checked; nothing in it is run.

    Args:
        reference: a policy folder, a ``.ckpt``, a run folder (its best checkpoint, else its last), ``last`` or
            ``best``, ``hf://owner/name@revision``, or a name of the zoo.
        run_dir: the run that ``last`` and ``best`` belong to.

    Raises:
        CheckpointError: it is missing, damaged, or holds what a file must not decide.
    """
    path = find_policy(reference, run_dir)
    if path.is_dir():
        from qmix_lightning.policies.folder import read_policy_folder

        return read_policy_folder(path)
    from qmix_lightning.policies.from_checkpoint import read_checkpoint_policy

    return read_checkpoint_policy(path)
