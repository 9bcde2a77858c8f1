"""Create a vector environment from a factory and its settings; report what fails in one line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qmix_lightning.environment import VectorEnv, is_natively_batched
from qmix_lightning.errors import ConfigurationError, EnvironmentContractError
from qmix_lightning.vector.checked import CheckedVectorEnv
from qmix_lightning.vector.process import ProcessVectorEnv
from qmix_lightning.vector.simulator_output import SimulatorOutput
from qmix_lightning.vector.sync import SyncVectorEnv, close_all
from qmix_lightning.vector.worker_process import Interpreter
from qmix_lightning.worker.create_env import AdapterMaker, create_env
from qmix_lightning.worker.fault_tolerance import FaultLimit, Faults, FaultTolerantEnv
from qmix_lightning.worker.supervisor import supervise

__all__ = ["SYNC", "Backend", "interpreter_of", "make_vector_env"]


@dataclass(frozen=True)
class Backend:
    """Where single environments step, ``sync`` (this process) or ``process`` (workers), and their limit of faults.

    ``interpreter`` is another Python for the workers, which there are then in any case; ``output`` the file that takes
    what simulators in workers write, ``None`` leaves that to standard error.
    """

    backend: str = "sync"
    num_workers: int = 1
    timeout_s: float = 300.0
    limit: FaultLimit = field(default_factory=FaultLimit)
    interpreter: Interpreter | None = None
    output: Path | None = None

    @property
    def has_workers(self) -> bool:
        return self.backend == "process" or self.interpreter is not None


SYNC = Backend()
"""This process, with the limit of faults that nobody chose."""


def interpreter_of(path: str | None, variables: Sequence[str]) -> Interpreter | None:
    """Return the Python of ``rollout.python``; ``None``: this one."""
    return Interpreter(path, tuple(variables)) if path is not None else None


def make_vector_env(
    factory: Callable[..., Any],
    settings: Mapping[str, Any],
    *,
    num_envs: int,
    name: str,
    reward_aggregation: str = "sum",
    timeout_is_terminal: bool = False,
    episode_limit: int | None = None,
    team: list[str] | None = None,
    backend: Backend = SYNC,
) -> VectorEnv:
    """Create a vector environment of ``num_envs`` environments of ``factory``.

    Args:
        factory: from :func:`qmix_lightning.environment.load`. With a ``num_envs`` parameter it is called once and
            returns a :class:`VectorEnv`; otherwise it is called ``num_envs`` times and returns a ``ParallelEnv``.
        settings: its keyword arguments.
        num_envs: environments that step together, ``E``.
        name: what messages call the environment.
        reward_aggregation, timeout_is_terminal, episode_limit, team: see :class:`ParallelAdapter`; a natively batched
            environment decides these for itself and refuses them. With a team, the environments still show and step
            every agent: see :class:`~qmix_lightning.vector.team_env.TeamEnv`.
        backend: where single environments step, and what faults are tolerated.
    """
    if num_envs < 1:
        raise ConfigurationError(f"num_envs must be at least 1, not {num_envs}")
    what = f"environment '{name}'"
    if is_natively_batched(factory):
        changed = {
            "reward_aggregation": reward_aggregation != "sum",
            "timeout_is_terminal": timeout_is_terminal,
            "episode_limit": episode_limit is not None,
            "team": team is not None,
        }
        if refused := [setting for setting, differs in changed.items() if differs]:
            raise ConfigurationError(f"{what} is batched by nature and does not take {', '.join(refused)}")
        if backend.has_workers:
            instead = "leave out rollout.python" if backend.interpreter else "use rollout=sync"
            raise ConfigurationError(f"{what} is batched by nature and steps in this process: {instead}")
        env = create_env(factory, {**settings, "num_envs": num_envs}, what)
        if not isinstance(env, VectorEnv):
            raise EnvironmentContractError(
                f"{what}: its factory takes num_envs, so it must return a VectorEnv "
                f"(spec, num_envs, device, reset, step, close), not {type(env).__name__}"
            )
        return CheckedVectorEnv(env, name, backend.limit)
    make = AdapterMaker(factory, settings, name, reward_aggregation, timeout_is_terminal, episode_limit, team)
    if backend.has_workers:
        return ProcessVectorEnv(
            make,
            num_envs=num_envs,
            num_workers=backend.num_workers,
            name=name,
            limit=backend.limit,
            timeout_s=backend.timeout_s,
            interpreter=backend.interpreter,
            sink=SimulatorOutput(backend.output) if backend.output is not None else None,
        )
    supervise()  # a simulator may start a game
    created: list[FaultTolerantEnv] = []
    try:
        faults = Faults(name, backend.limit)
        for number in range(num_envs):
            created.append(FaultTolerantEnv(make, number, faults))
        return SyncVectorEnv(created, faults)
    except BaseException:
        close_all(created)
        raise
