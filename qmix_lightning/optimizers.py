"""Optimisers by name; an entry's keyword arguments are the settings of its YAML."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from qmix_lightning.registry import Registry

__all__ = ["OPTIMIZERS", "adam", "rmsprop"]

OPTIMIZERS = Registry("optimizer", "qmix_lightning.optimizers")

Groups = list[dict[str, Any]]


def _with_clipping(groups: Groups, max_grad_norm: float | None) -> Groups:
    return [{"max_grad_norm": max_grad_norm, **group} for group in groups]


def rmsprop(
    *, lr: float, alpha: float, eps: float, weight_decay: float, max_grad_norm: float | None
) -> Callable[[Groups], Optimizer]:
    """RMSprop; PyMARL trains with lr 5e-4, alpha 0.99, eps 1e-5 and clips at norm 10."""
    return lambda groups: torch.optim.RMSprop(
        _with_clipping(groups, max_grad_norm), lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay, foreach=True
    )


def adam(
    *, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, max_grad_norm: float | None
) -> Callable[[Groups], Optimizer]:
    """Adam (Kingma & Ba 2015)."""
    return lambda groups: torch.optim.Adam(
        _with_clipping(groups, max_grad_norm),
        lr=lr,
        betas=(beta1, beta2),
        eps=eps,
        weight_decay=weight_decay,
        foreach=True,
    )
