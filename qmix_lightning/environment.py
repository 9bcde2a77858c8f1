"""Define environments as plugins: the vector protocol, and the registry that every environment goes through.

An environment is one of two things.

* A PettingZoo ``ParallelEnv``: the plugin contract of the ecosystem. ``qmix_lightning.vector`` steps many of
  them together.
* A natively batched simulator: its factory has a ``num_envs`` parameter and returns a :class:`VectorEnv`.

Three ways in, none of which edits this package: an entry point in the group ``qmix_lightning.envs``,
``env=pettingzoo env.id=package.module:factory``, or :func:`register` from Python.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from qmix_lightning.registry import Registry
from qmix_lightning.runtime.moved import look_up_renamed
from qmix_lightning.worker.arguments import check_arguments

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from qmix_lightning.types import EnvSpec, Observation, Transition

__all__ = [
    "ENVIRONMENTS",
    "PrefetchesResets",
    "TabularGame",
    "VectorEnv",
    "check_arguments",
    "is_natively_batched",
    "load",
    "names",
    "register",
]

ENVIRONMENTS = Registry(
    "environment",
    "qmix_lightning.envs",
    {
        "two_step": "qmix_lightning.envs.two_step:TwoStep",
        "matrix": "qmix_lightning.envs.matrix:Matrix",
        "pettingzoo": "qmix_lightning.envs.pettingzoo:make",
        "mpe": "qmix_lightning.envs.mpe:make",
        "gymnasium": "qmix_lightning.envs.gymnasium_tuple:make",
        "lbf": "qmix_lightning.envs.lbf:make",
        "rware": "qmix_lightning.envs.rware:make",
        "overcooked": "qmix_lightning.envs.overcooked:make",
        "smac": "qmix_lightning.envs.smac:make",
        "smacv2": "qmix_lightning.envs.smacv2:make",
        "smax": "qmix_lightning.envs.smax:make",
        "jaxmarl": "qmix_lightning.envs.jaxmarl:make",
        "vmas": "qmix_lightning.envs.vmas:make",
        "magent2": "qmix_lightning.envs.magent:make",
        "pogema": "qmix_lightning.envs.pogema:make",
        "smaclite": "qmix_lightning.envs.smaclite:make",
    },
)

__getattr__ = look_up_renamed(__name__, {"BeginsAhead": "qmix_lightning.environment:PrefetchesResets"})


@runtime_checkable
class VectorEnv(Protocol):
    """``E`` environments that step together and never reset themselves.

    The tensors that ``reset`` and ``step`` return stay valid until the next call of either. One whose episodes are no
    function of the seed has an attribute ``seeded`` that is false: its episodes are never played again.
    """

    spec: EnvSpec
    num_envs: int
    device: torch.device

    def reset(self, mask: Tensor, seeds: Tensor) -> Observation:
        """Start a new episode where ``mask [E]`` is true, each from its own ``seeds [E]`` (int64, < 2**31).

        The same seed must give the same episode for the same actions. Other environments are left alone; the
        observation of all is returned.
        """
        ...

    def step(self, actions: Tensor, active: Tensor) -> Transition:
        """Take one joint step with ``actions [E, N]`` int64 where ``active [E]`` is true.

        Inactive environments keep their state; their rows of the result have no meaning.
        """
        ...

    def close(self) -> None:
        """Release everything; may be called twice."""
        ...


@runtime_checkable
class PrefetchesResets(VectorEnv, Protocol):
    """Vector environments that can make use of knowing which episodes come next."""

    def prefetch_resets(self, seeds: Tensor) -> None:
        """Announce that each environment's next episode will be that of ``seeds [E]``.

        A hint, given before a ``reset``: whatever was prefetched, the episode is the one whose seed ``reset`` is given.
        """
        ...


@runtime_checkable
class TabularGame(VectorEnv, Protocol):
    """A game so small that its optimal values are known exactly, to be shown in tables beside the learned ones."""

    def histories(self) -> dict[str, list[list[list[int]]]]:
        """Return, by the label of a state, the joint-action sequences that lead to it from reset."""
        ...

    def exact_q_values(self, gamma: float) -> dict[str, list[Any]]:
        """Return, by the label of a state, a nested list ``[A_1][..][A_N]``: the optimal value of each joint action."""
        ...


def register(name: str, target: str | Callable[..., Any], *, overwrite: bool = False) -> None:
    """Register a factory, so that ``env=name`` works in this process.

    Args:
        name: the environment's name.
        target: a factory, or ``"package.module:factory"``. Its keyword arguments are the environment's settings.
            It returns a PettingZoo ``ParallelEnv``, or, if it has a ``num_envs`` parameter, a :class:`VectorEnv`.
        overwrite: replace a name given before.
    """
    ENVIRONMENTS.register(name, target, overwrite=overwrite)


def load(name: str) -> Callable[..., Any]:
    """Return the factory of environment ``name``; an unknown name is an error with the closest known one."""
    return ENVIRONMENTS.load(name)


def names() -> list[str]:
    """Return the name of every environment that ``env=`` accepts."""
    return ENVIRONMENTS.names()


def is_natively_batched(factory: Callable[..., Any]) -> bool:
    """Return whether ``factory`` makes a batched simulator: it takes ``num_envs``."""
    return "num_envs" in inspect.signature(factory).parameters
