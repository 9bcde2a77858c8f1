"""Run the few collectives the package needs; without a process group each is the identity."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["all_gather_objects", "all_reduce_sum", "least_number", "rank", "sum_numbers", "world_size"]


def _ready() -> bool:
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if _ready() else 1


def rank() -> int:
    """Return this process's number among those that train together."""
    return dist.get_rank() if _ready() else 0


def all_reduce_sum(value: Tensor) -> Tensor:
    """Return ``value`` summed over ranks, on the same device."""
    if world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def sum_numbers(numbers: list[float], device: torch.device) -> list[float]:
    """Return each number summed over ranks, in double precision where the device has it."""
    if world_size() == 1:
        return numbers
    return all_reduce_sum(_as_tensor(numbers, device)).tolist()


def least_number(number: float, device: torch.device) -> float:
    """Return the smallest of all ranks' numbers, in double precision where the device has it."""
    if world_size() == 1:
        return number
    value = _as_tensor(number, device)
    dist.all_reduce(value, op=dist.ReduceOp.MIN)
    return float(value)


def _as_tensor(numbers: float | list[float], device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)


def all_gather_objects(value: Any) -> list[Any]:
    """Return ``value`` of every rank, in rank order."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered
