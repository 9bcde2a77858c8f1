"""Many environments that step together: PettingZoo ones in this process, or one that is batched by nature."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from qmix_lightning.buffers import Buffers
from qmix_lightning.environment import VectorEnv, is_natively_batched
from qmix_lightning.errors import ConfigurationError, EnvironmentContractError
from qmix_lightning.opening import AdapterMaker, call_factory
from qmix_lightning.parallel_adapter import ParallelAdapter
from qmix_lightning.process_env import ProcessVectorEnv
from qmix_lightning.supervised import EnvBlock, FaultLimit, Faults, SupervisedEnv, versions_of
from qmix_lightning.types import Observation, Transition

__all__ = ["Backend", "SyncVectorEnv", "make_vector_env"]


@dataclass(frozen=True)
class Backend:
    """Where single environments step: ``sync`` (this process) or ``process`` (workers), and how faults are met."""

    backend: str = "sync"
    num_workers: int = 1
    timeout_s: float = 300.0
    limit: FaultLimit = field(default_factory=FaultLimit)


SYNC = Backend()


class SyncVectorEnv:
    """``E`` PettingZoo environments, stepped one after the other in this process.

    A :class:`~qmix_lightning.environment.VectorEnv`: the tensors it returns are its own memory, overwritten by the
    next ``reset`` or ``step``.

    Args:
        adapters: one for each environment; closed with this object.
        faults: where supervised ones count theirs.
    """

    def __init__(self, adapters: Sequence[ParallelAdapter | SupervisedEnv], faults: Faults | None = None) -> None:
        self.spec = adapters[0].spec
        self.num_envs = len(adapters)
        self.device = torch.device("cpu")
        self._adapters = list(adapters)
        self.faults = faults.counts if faults else {}
        first = adapters[0]
        self.versions = first.versions if isinstance(first, SupervisedEnv) else versions_of(first)
        self._none = torch.zeros(self.num_envs, dtype=torch.bool)
        for index, adapter in enumerate(adapters):
            if adapter.spec != self.spec:
                raise EnvironmentContractError(_difference(self.spec.to_dict(), adapter.spec.to_dict(), index))
        self._buffers = buffers = Buffers.zeros(self.spec, self.num_envs)
        self._block = EnvBlock(dict(enumerate(adapters)), buffers)
        self._observation = Observation(
            obs=torch.from_numpy(buffers.obs),
            state=torch.from_numpy(buffers.state),
            avail_actions=torch.from_numpy(buffers.avail_actions),
            agent_mask=torch.from_numpy(buffers.agent_mask),
        )
        # Views too, so that a step costs no tensor at all.
        self._transition = Transition(
            next=self._observation,
            reward=torch.from_numpy(buffers.reward),
            terminated=torch.from_numpy(buffers.terminated),
            truncated=torch.from_numpy(buffers.truncated),
            agent_reward=torch.from_numpy(buffers.agent_reward),
            metrics={
                name: torch.from_numpy(buffers.metrics[m]) for m, name in enumerate(self.spec.episode_metrics)
            },
        )  # fmt: skip

    def reset(self, mask: Tensor, seeds: Tensor) -> Observation:
        """Start the episodes of ``seeds [E]`` where ``mask [E]``."""
        self._block.reset(seeds.tolist(), mask.tolist())
        return self._observation

    def step(self, actions: Tensor, active: Tensor) -> Transition:
        """One joint step with ``actions [E, N]`` where ``active [E]``."""
        wanted = active.tolist()
        if not all(wanted):
            buffers, idle = self._buffers, ~active.numpy()
            buffers.reward[idle], buffers.terminated[idle], buffers.truncated[idle] = 0.0, False, False
        failed = self._block.step(actions.tolist(), wanted)
        self._transition.failed = self._none
        if failed:
            self._transition.failed = self._none.clone()
            self._transition.failed[failed] = True
        return self._transition

    def close(self) -> None:
        """Close every environment, even where closing one fails; may be called twice."""
        if failures := _close_all(self._adapters):
            raise failures[0]


def make_vector_env(
    factory: Callable[..., Any],
    settings: Mapping[str, Any],
    *,
    num_envs: int,
    name: str,
    reward_aggregation: str = "sum",
    timeout_is_terminal: bool = False,
    episode_limit: int | None = None,
    backend: Backend = SYNC,
) -> VectorEnv:
    """``num_envs`` environments of ``factory``.

    Args:
        factory: from :func:`qmix_lightning.environment.load`. With a ``num_envs`` parameter it is called once and
            returns a :class:`VectorEnv`; otherwise it is called ``num_envs`` times and returns a ``ParallelEnv``.
        settings: its keyword arguments.
        num_envs: environments that step together, ``E``.
        name: what messages call the environment.
        reward_aggregation, timeout_is_terminal, episode_limit: see :class:`ParallelAdapter`; a natively batched
            environment decides these for itself and refuses them.
        backend: where single environments step, and what faults are put up with.
    """
    if num_envs < 1:
        raise ConfigurationError(f"num_envs must be at least 1, not {num_envs}")
    what = f"environment '{name}'"
    if is_natively_batched(factory):
        changed = {
            "reward_aggregation": reward_aggregation != "sum",
            "timeout_is_terminal": timeout_is_terminal,
            "episode_limit": episode_limit is not None,
        }
        if refused := [setting for setting, differs in changed.items() if differs]:
            raise ConfigurationError(f"{what} is batched by nature and does not take {', '.join(refused)}")
        if backend.backend == "process":
            raise ConfigurationError(f"{what} is batched by nature and steps in this process: use rollout=sync")
        env = call_factory(factory, {**settings, "num_envs": num_envs}, what)
        if not isinstance(env, VectorEnv):
            raise EnvironmentContractError(
                f"{what}: its factory takes num_envs, so it must return a VectorEnv "
                f"(spec, num_envs, device, reset, step, close), not {type(env).__name__}"
            )
        return env
    make = AdapterMaker(factory, settings, name, reward_aggregation, timeout_is_terminal, episode_limit)
    if backend.backend == "process":
        return ProcessVectorEnv(
            make,
            num_envs=num_envs,
            num_workers=backend.num_workers,
            name=name,
            limit=backend.limit,
            timeout_s=backend.timeout_s,
        )
    opened: list[SupervisedEnv] = []
    try:
        faults = Faults(name, backend.limit)
        for number in range(num_envs):
            opened.append(SupervisedEnv(make, number, faults))
        return SyncVectorEnv(opened, faults)
    except BaseException:
        _close_all(opened)
        raise


def _close_all(closeables: Iterable[Any]) -> list[Exception]:
    """Close each of them, whatever the others do; what was raised."""
    failures = []
    for closeable in closeables:
        try:
            closeable.close()
        except Exception as error:
            failures.append(error)
    return failures


def _difference(first: dict[str, Any], other: dict[str, Any], index: int) -> str:
    key = next(k for k in first if first[k] != other[k])
    return f"environments that step together must be alike: {key} is {first[key]} in number 0, {other[key]} in {index}"
