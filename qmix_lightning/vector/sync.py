"""Step PettingZoo environments one after the other in this process."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qmix_lightning.errors import EnvironmentContractError
from qmix_lightning.types import Observation, Transition
from qmix_lightning.vector.buffer_views import transition_view
from qmix_lightning.worker.buffers import Buffers
from qmix_lightning.worker.declared import is_seeded, versions_of
from qmix_lightning.worker.fault_tolerance import EnvBlock, Faults, FaultTolerantEnv
from qmix_lightning.worker.frames import read_frame
from qmix_lightning.worker.parallel_adapter import ParallelAdapter

__all__ = ["SyncVectorEnv", "close_all"]


class SyncVectorEnv:
    """``E`` PettingZoo environments, stepped one after the other in this process.

    A :class:`~qmix_lightning.environment.VectorEnv`: the tensors it returns are its own buffers, overwritten by the
    next ``reset`` or ``step``.

    Args:
        adapters: one for each environment; closed with this object.
        faults: where fault-tolerant ones count theirs.
    """

    def __init__(self, adapters: Sequence[ParallelAdapter | FaultTolerantEnv], faults: Faults | None = None) -> None:
        self.spec = adapters[0].spec
        self.num_envs = len(adapters)
        self.device = torch.device("cpu")
        self._adapters = list(adapters)
        self.faults = faults.counts if faults else {}
        self.versions, self.seeded = versions_of(self.first_env), is_seeded(self.first_env)
        self._none = torch.zeros(self.num_envs, dtype=torch.bool)
        for index, adapter in enumerate(adapters):
            if adapter.spec != self.spec:
                raise EnvironmentContractError(_difference(self.spec.to_dict(), adapter.spec.to_dict(), index))
        self._buffers = Buffers.zeros(self.spec, self.num_envs)
        self._block = EnvBlock(dict(enumerate(adapters)), self._buffers)
        self._transition = transition_view(self._buffers, self.spec)

    def reset(self, mask: Tensor, seeds: Tensor) -> Observation:
        """Start the episodes of ``seeds [E]`` where ``mask [E]``."""
        self._block.reset(seeds.tolist(), mask.tolist())
        return self._transition.next

    def step(self, actions: Tensor, active: Tensor) -> Transition:
        """Take one joint step with ``actions [E, N]`` where ``active [E]``."""
        wanted = active.tolist()
        if not all(wanted):
            self._buffers.clear_outcome(~active.numpy())
        failed = self._block.step(actions.tolist(), wanted)
        self._transition.failed = self._none
        if failed:
            self._transition.failed = self._none.clone()
            self._transition.failed[failed] = True
        return self._transition

    @property
    def first_env(self) -> Any:
        """The first environment as its factory made it; another object after it was recreated."""
        return self._adapters[0].env

    def render(self, index: int) -> np.ndarray:
        """Return what environment ``index`` draws of its present state, ``[height, width, 3]`` uint8.

        Raises:
            ConfigurationError: it cannot draw.
        """
        return read_frame(self._adapters[index].render(), f"environment {index}")

    def close(self) -> None:
        """Close every environment, even where closing one fails; may be called twice."""
        if failures := close_all(self._adapters):
            raise failures[0]


def close_all(closeables: Iterable[Any]) -> list[Exception]:
    """Close each of them, whatever the others do; return what was raised."""
    failures = []
    for closeable in closeables:
        try:
            closeable.close()
        except Exception as error:
            failures.append(error)
    return failures


def _difference(first: dict[str, Any], other: dict[str, Any], index: int) -> str:
    key = next(k for k in {**first, **other} if first.get(k) != other.get(k))  # what says nothing is left out
    had = f"{key} is {first.get(key)} in number 0, {other.get(key)} in {index}"
    return f"environments that step together must be alike: {had}"
