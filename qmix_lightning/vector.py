"""Many environments that step together: PettingZoo ones in this process, or one that is batched by nature."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from qmix_lightning.buffers import Buffers
from qmix_lightning.environment import VectorEnv, check_arguments, is_natively_batched
from qmix_lightning.errors import (
    ConfigurationError,
    EnvironmentContractError,
    MissingDependencyError,
    QMixLightningError,
)
from qmix_lightning.parallel_adapter import ParallelAdapter
from qmix_lightning.types import Observation, Transition

__all__ = ["SyncVectorEnv", "make_vector_env"]


class SyncVectorEnv:
    """``E`` PettingZoo environments, stepped one after the other in this process.

    A :class:`~qmix_lightning.environment.VectorEnv`: the tensors it returns are its own memory, overwritten by the
    next ``reset`` or ``step``.

    Args:
        adapters: one for each environment; closed with this object.
    """

    def __init__(self, adapters: Sequence[ParallelAdapter]) -> None:
        self.spec = adapters[0].spec
        self.num_envs = len(adapters)
        self.device = torch.device("cpu")
        self._adapters = list(adapters)
        for index, adapter in enumerate(adapters):
            if adapter.spec != self.spec:
                raise EnvironmentContractError(_difference(self.spec.to_dict(), adapter.spec.to_dict(), index))
        self._buffers = buffers = Buffers.zeros(self.spec, self.num_envs)
        self._rows = [buffers.row(self.spec, index) for index in range(self.num_envs)]
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
        for e, (wanted, seed) in enumerate(zip(mask.tolist(), seeds.tolist(), strict=True)):
            if wanted:
                self._adapters[e].reset(seed, self._rows[e])
        return self._observation

    def step(self, actions: Tensor, active: Tensor) -> Transition:
        """One joint step with ``actions [E, N]`` where ``active [E]``."""
        buffers = self._buffers
        chosen = actions.tolist()
        for e, is_active in enumerate(active.tolist()):
            if not is_active:
                buffers.reward[e], buffers.terminated[e], buffers.truncated[e] = 0.0, False, False
                continue
            outcome = self._adapters[e].step(chosen[e], self._rows[e])
            buffers.reward[e], buffers.terminated[e], buffers.truncated[e], metrics = outcome
            if metrics:
                buffers.metrics[:, e] = metrics
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
        env = _call(factory, {**settings, "num_envs": num_envs}, what)
        if not isinstance(env, VectorEnv):
            raise EnvironmentContractError(
                f"{what}: its factory takes num_envs, so it must return a VectorEnv "
                f"(spec, num_envs, device, reset, step, close), not {type(env).__name__}"
            )
        return env
    opened: list[Any] = []
    try:
        adapters = []
        for _ in range(num_envs):
            opened.append(_call(factory, settings, what))
            adapters.append(
                ParallelAdapter(
                    opened[-1],
                    name=name,
                    reward_aggregation=reward_aggregation,
                    timeout_is_terminal=timeout_is_terminal,
                    episode_limit=episode_limit,
                )
            )
        return SyncVectorEnv(adapters)
    except BaseException:
        _close_all(env for env in opened if hasattr(env, "close"))  # a simulator may hold processes
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


def _call(factory: Callable[..., Any], arguments: Mapping[str, Any], what: str) -> Any:
    """``factory(**arguments)``; whatever it raises becomes one line that names the environment."""
    check_arguments(factory, arguments, what)
    try:
        return factory(**arguments)
    except QMixLightningError:
        raise
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        way_out = f"needs the package '{package}': pip install {package}" if package else f"could not be made: {error}"
        raise MissingDependencyError(f"{what} {way_out}") from error
    except Exception as error:
        reason = " ".join(str(error).split()) or "no message"
        raise ConfigurationError(f"{what} could not be made: {type(error).__name__}: {reason}") from error


def _difference(first: dict[str, Any], other: dict[str, Any], index: int) -> str:
    key = next(k for k in first if first[k] != other[k])
    return f"environments that step together must be alike: {key} is {first[key]} in number 0, {other[key]} in {index}"
