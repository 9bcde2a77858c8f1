"""Train cooperative teams of agents on PyTorch Lightning: QMIX and its family.

Importing the package is cheap on purpose: torch and Lightning are loaded by what needs them.
"""

from typing import TYPE_CHECKING, Any

from qmix_lightning.runtime.moved import keep_modules

if TYPE_CHECKING:
    from qmix_lightning.api import TrainedRun, build_lightning, evaluate, load, train
    from qmix_lightning.policies import Team

__all__ = ["Team", "TrainedRun", "__version__", "build_lightning", "evaluate", "load", "train"]

__version__ = "0.2.0"

_PLACES = {
    "Team": "qmix_lightning.policies",
    **dict.fromkeys(("TrainedRun", "build_lightning", "evaluate", "load", "train"), "qmix_lightning.api"),
}

keep_modules()


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for."""
    if name not in _PLACES:
        raise AttributeError(f"module 'qmix_lightning' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> "list[str]":
    return sorted(__all__)
