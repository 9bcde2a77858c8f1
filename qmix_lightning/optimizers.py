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


def _check(max_grad_norm: float | None, **positive: float) -> None:
    for name, value in positive.items():
        if not value > 0:
            raise ValueError(f"{name} must be above 0, not {value}")
    if max_grad_norm is not None and not max_grad_norm > 0:
        raise ValueError(f"max_grad_norm must be above 0, or null for no clipping, not {max_grad_norm}")


def _check_fraction(**fractions: float) -> None:
    for name, value in fractions.items():
        if not 0.0 <= value < 1.0:
            raise ValueError(f"{name} must be at least 0 and below 1, not {value}")


def _with_clipping(groups: Groups, max_grad_norm: float | None) -> Groups:
    return [{"max_grad_norm": max_grad_norm, **group} for group in groups]


def rmsprop(
    *, lr: float, alpha: float, eps: float, weight_decay: float, max_grad_norm: float | None
) -> Callable[[Groups], Optimizer]:
    """RMSprop; PyMARL trains with lr 5e-4, alpha 0.99, eps 1e-5 and clips at norm 10."""
    _check(max_grad_norm, lr=lr, eps=eps)
    _check_fraction(alpha=alpha)
    if weight_decay < 0:
        raise ValueError(f"weight_decay must be at least 0, not {weight_decay}")
    return lambda groups: torch.optim.RMSprop(
        _with_clipping(groups, max_grad_norm), lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay, foreach=True
    )


def adam(
    *, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, max_grad_norm: float | None
) -> Callable[[Groups], Optimizer]:
    """Adam (Kingma & Ba 2015)."""
    _check(max_grad_norm, lr=lr, eps=eps)
    _check_fraction(beta1=beta1, beta2=beta2)
    if weight_decay < 0:
        raise ValueError(f"weight_decay must be at least 0, not {weight_decay}")
    return lambda groups: torch.optim.Adam(
        _with_clipping(groups, max_grad_norm),
        lr=lr,
        betas=(beta1, beta2),
        eps=eps,
        weight_decay=weight_decay,
        foreach=True,
    )
