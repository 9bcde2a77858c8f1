"""Open trained policies, wherever they are kept, act with them, and give them to others.

A *reference* names one: a policy folder, a checkpoint, a run folder, ``last`` or ``best`` of a run, a policy of the zoo
or of the Hugging Face hub. :func:`open_policy` reads all of them; Lightning is not imported for it.
"""

from typing import TYPE_CHECKING

from qmix_lightning.policies.opener import open_network, open_policy

if TYPE_CHECKING:
    from qmix_lightning.policies.stored import StoredPolicy
    from qmix_lightning.policies.team import Team

__all__ = ["StoredPolicy", "Team", "open_network", "open_policy"]

_PLACES = {"StoredPolicy": "qmix_lightning.policies.stored", "Team": "qmix_lightning.policies.team"}


def __getattr__(name: str) -> type:
    """Import a class when it is asked for: a reference that names nothing is told without torch."""
    if name not in _PLACES:
        raise AttributeError(f"module 'qmix_lightning.policies' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)
