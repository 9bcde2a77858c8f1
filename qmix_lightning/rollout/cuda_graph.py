"""Capture the acting step as a CUDA graph and replay it: on a GPU some thirty small kernels cost their launches.

A CUDA graph repeats kernels on the addresses they were captured with. So everything a step reads lies in buffers that
stay: observations, masks and draws are copied into them, the agents' memories and last actions are left there by the
step before, and a publication writes the new weights over the old ones, and what was computed from them beforehand too.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from qmix_lightning.agents.base import AgentState, forget_dead
from qmix_lightning.agents.policy import Policy
from qmix_lightning.rollout.inference import ActFunction
from qmix_lightning.runtime.transfer import pinned
from qmix_lightning.types import NO_OP, Observation

__all__ = ["CudaGraph", "CudaGraphError", "CudaGraphStep", "Graph", "tensors_of"]

_WARM_UP = 3


class CudaGraphError(Exception):
    """Raised when the step cannot be captured; nothing has changed, and it can be taken without a graph."""


class Graph(Protocol):
    """A captured function, which can be repeated on the same buffers."""

    def capture(self, run: Callable[[], None]) -> None:
        """Capture what ``run`` does; it may be called several times meanwhile, or not carried out at all."""
        ...

    def replay(self) -> None:
        """Repeat what was captured."""
        ...


class CudaGraph:
    """A :class:`Graph` that is a :class:`torch.cuda.CUDAGraph`.

    Args:
        device: a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._graph = torch.cuda.CUDAGraph()

    def capture(self, run: Callable[[], None]) -> None:
        with torch.cuda.device(self._device):
            # Libraries prepare themselves at their first calls, which must not be part of it.
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(_WARM_UP):
                    run()
            torch.cuda.current_stream().wait_stream(aside)
            # Other threads may go on: an update runs while a round is collected.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                run()

    def replay(self) -> None:
        self._graph.replay()


class CudaGraphStep:
    """One joint step of ``E`` environments: values, memory, choice of actions; captured when it is first taken.

    Args:
        policy: what acts, on ``device``; its parameters are only ever changed in place.
        act_function: the policy folded for inference.
        num_envs: ``E``.
        device: where.
        make_graph: creates an empty graph on a device.
    """

    def __init__(
        self,
        policy: Policy,
        act_function: ActFunction,
        num_envs: int,
        device: torch.device,
        make_graph: Callable[[torch.device], Graph] = CudaGraph,
    ) -> None:
        n, a, o = policy.inputs.n_agents, policy.inputs.n_actions, policy.inputs.obs_dim
        self._policy = policy
        self._forward = act_function
        self._device = device
        self._make_graph = make_graph
        self._graphs: dict[bool, Graph] = {}

        def buffer(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(num_envs, *shape, dtype=dtype, device=device)

        self._obs = buffer(n, o)
        self._avail = buffer(n, a, dtype=torch.bool)
        self._alive = buffer(n, dtype=torch.bool)
        self._waiting = buffer(dtype=torch.bool)
        self._any_waiting = False
        self._draws: Tensor | None = None  # of the collector's precision
        self._epsilon = torch.zeros((), device=device)
        self._last_action = torch.full((num_envs, n), -1, device=device)
        self._state: AgentState = tuple(s.clone() for s in policy.initial_state(num_envs))

    @torch.no_grad()
    def refresh(self, act_function: ActFunction) -> None:
        """Take over ``act_function``, recreated after the policy's parameters changed, without moving anything.

        Raises:
            CudaGraphError: it holds other tensors than the one before.
        """
        old, new = list(tensors_of(self._forward)), list(tensors_of(act_function))
        if [t.shape for t in old] != [t.shape for t in new]:
            raise CudaGraphError("the policy folded for inference is of another shape than before")
        for mine, theirs in zip(old, new, strict=True):
            if mine.data_ptr() != theirs.data_ptr():  # a view of a parameter has changed with it
                mine.copy_(theirs)

    def __call__(
        self,
        observation: Observation,
        last_action: Tensor,
        state: AgentState,
        epsilon: float,
        draws: Tensor | None,
        waiting: Tensor | None,
    ) -> tuple[Tensor, AgentState]:
        """Return legal actions ``[E, N]`` and the next state, in buffers that the next call overwrites.

        Arguments are those of :meth:`~qmix_lightning.rollout.rollout_policy.RolloutPolicy.act`, on any device.

        Raises:
            CudaGraphError: it is the first such step, and cannot be captured.
        """
        given = [(self._obs, observation.obs), (self._avail, observation.avail_actions)]
        given += [(self._alive, observation.agent_mask), (self._last_action, last_action)]
        given += zip(self._state, state, strict=True)
        if draws is not None:
            if self._draws is None:
                self._draws = torch.zeros(draws.shape, dtype=draws.dtype, device=self._device)
                self._epsilon = self._epsilon.to(draws.dtype)
            given.append((self._draws, draws))
            self._epsilon.fill_(epsilon)
        if waiting is not None:
            given.append((self._waiting, waiting))
        elif self._any_waiting:
            self._waiting.zero_()
        self._any_waiting = waiting is not None
        for mine, values in given:
            if mine is not values:
                mine.copy_(pinned(values) if self._device.type == "cuda" else values, non_blocking=True)
        self._graph(exploring=draws is not None).replay()
        return self._last_action, self._state

    def _graph(self, *, exploring: bool) -> Graph:
        if exploring not in self._graphs:
            kept = [t.clone() for t in (self._last_action, *self._state)]
            try:
                graph = self._make_graph(self._device)
                graph.capture(lambda: self._step(exploring))
            except Exception as error:
                raise CudaGraphError(" ".join(str(error).split()) or type(error).__name__) from error
            finally:  # trying it out has moved them on
                for mine, before in zip((self._last_action, *self._state), kept, strict=True):
                    mine.copy_(before)
            self._graphs[exploring] = graph
        return self._graphs[exploring]

    def _step(self, exploring: bool) -> None:
        q, state = self._forward(self._obs, self._last_action, self._state)
        state = forget_dead(state, self._alive)
        chosen = self._policy.select(q, self._avail, self._epsilon, self._draws if exploring else None)
        self._last_action.copy_(chosen.masked_fill(self._waiting[:, None], NO_OP))
        for mine, new in zip(self._state, state, strict=True):
            mine.copy_(new)


def tensors_of(thing: Any) -> Iterator[Tensor]:
    """Yield every tensor that a function or an object of plain parts holds, in a fixed order.

    Raises:
        CudaGraphError: it holds something that is not understood, which might hide one.
    """
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, nn.Module):
        yield from thing.parameters()
        yield from thing.buffers()
    elif isinstance(thing, tuple | list):
        for part in thing:
            yield from tensors_of(part)
    elif isinstance(thing, Mapping):
        yield from tensors_of(list(thing.values()))
    elif isinstance(thing, types.FunctionType):
        yield from tensors_of([cell.cell_contents for cell in thing.__closure__ or ()])
    elif isinstance(thing, types.MethodType):
        yield from tensors_of(thing.__self__)
    elif type(thing).__module__.startswith("qmix_lightning."):
        yield from tensors_of(vars(thing))
    elif thing is not None and not isinstance(thing, bool | int | float | str | torch.dtype | torch.device):
        raise CudaGraphError(f"what acts holds a {type(thing).__name__}, which is not followed")
