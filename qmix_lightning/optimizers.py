"""Make optimisers by name, and set their learning rates by schedule.

The keyword arguments of an entry are the settings of its YAML.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.optim import Optimizer

from qmix_lightning.registry import Registry
from qmix_lightning.runtime.choices import check_choices

__all__ = ["OPTIMIZERS", "LearningRate", "adam", "lr_factor", "rmsprop", "set_learning_rates"]

OPTIMIZERS = Registry(
    "optimizer",
    "qmix_lightning.optimizers",
    {
        "rmsprop": "qmix_lightning.optimizers:rmsprop",
        "adam": "qmix_lightning.optimizers:adam",
    },
)

Groups = list[dict[str, Any]]


@dataclass(frozen=True)
class LearningRate:
    """Settings of the learning rate over environment steps.

    Attributes:
        lr: at the beginning; a parameter group with an ``lr`` of its own begins there and falls by the same factor.
        lr_schedule: ``constant``, ``linear``, or ``cosine`` (Loshchilov & Hutter 2017, eq. 5, without restarts).
        lr_anneal_steps: environment steps, over all ranks, after which it is ``lr_final``.
        lr_final: where it stays then; unused by ``constant``.
    """

    lr: float
    lr_schedule: Literal["constant", "linear", "cosine"]
    lr_anneal_steps: int
    lr_final: float

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"lr must be above 0, not {self.lr}")
        check_choices(self)
        if self.lr_anneal_steps < 1:
            raise ValueError(f"lr_anneal_steps must be at least 1, not {self.lr_anneal_steps}")
        if self.lr_final < 0:
            raise ValueError(f"lr_final must be at least 0, not {self.lr_final}")


def lr_factor(schedule: str, env_steps: int, anneal_steps: int, final: float) -> float:
    """Return what a learning rate is multiplied by after ``env_steps``: from 1 to ``final`` over ``anneal_steps``."""
    if schedule == "constant":
        return 1.0
    done = min(1.0, max(0.0, env_steps / anneal_steps))
    left = 1.0 - done if schedule == "linear" else (1.0 + math.cos(math.pi * done)) / 2.0
    return final + (1.0 - final) * left


def set_learning_rates(optimizer: Optimizer, env_steps: int) -> None:
    """Give every parameter group the learning rate of this moment.

    It depends on ``env_steps`` alone, so that a resumed run has the same without anything being saved for it.
    """
    for group in optimizer.param_groups:
        if group.get("lr_schedule", "constant") != "constant":
            factor = lr_factor(group["lr_schedule"], env_steps, group["lr_anneal_steps"], group["lr_final_share"])
            group["lr"] = group["initial_lr"] * factor


def _check(*, eps: float, weight_decay: float, max_grad_norm: float | None, **fractions: float) -> None:
    """Check what every optimiser has, and those settings of it that are at least 0 and below 1."""
    if not eps > 0:
        raise ValueError(f"eps must be above 0, not {eps}")
    if max_grad_norm is not None and not max_grad_norm > 0:
        raise ValueError(f"max_grad_norm must be above 0, or null for no clipping, not {max_grad_norm}")
    for name, value in fractions.items():
        if not 0.0 <= value < 1.0:
            raise ValueError(f"{name} must be at least 0 and below 1, not {value}")
    if weight_decay < 0:
        raise ValueError(f"weight_decay must be at least 0, not {weight_decay}")


def _complete(groups: Groups, rate: LearningRate, max_grad_norm: float | None) -> Groups:
    """Return the groups with their clipping and schedule; what a group says itself stays."""
    common: dict[str, Any] = {"lr": rate.lr, "max_grad_norm": max_grad_norm}
    if rate.lr_schedule != "constant":
        common |= {"lr_schedule": rate.lr_schedule, "lr_anneal_steps": rate.lr_anneal_steps}
        common["lr_final_share"] = rate.lr_final / rate.lr
        groups = [{"initial_lr": group.get("lr", rate.lr), **group} for group in groups]
    return [{**common, **group} for group in groups]


def _kernels(groups: Groups) -> dict[str, bool]:
    """Choose one kernel for all parameters on one kind of device, if torch has it, or a few that round differently."""
    kinds = {p.device.type for group in groups for p in group["params"]}
    return {"fused": True} if kinds in ({"cpu"}, {"cuda"}) else {"foreach": True}


def rmsprop(
    *, rate: LearningRate, alpha: float, eps: float, weight_decay: float, max_grad_norm: float | None
) -> Callable[[Groups], Optimizer]:
    """Return a function that makes RMSprop; PyMARL trains with lr 5e-4, alpha 0.99, eps 1e-5 and clips at norm 10."""
    _check(eps=eps, weight_decay=weight_decay, max_grad_norm=max_grad_norm, alpha=alpha)
    return lambda groups: torch.optim.RMSprop(
        _complete(groups, rate, max_grad_norm), alpha=alpha, eps=eps, weight_decay=weight_decay, foreach=True
    )


def adam(
    *, rate: LearningRate, beta1: float, beta2: float, eps: float, weight_decay: float, max_grad_norm: float | None
) -> Callable[[Groups], Optimizer]:
    """Return a function that makes Adam (Kingma & Ba 2015)."""
    _check(eps=eps, weight_decay=weight_decay, max_grad_norm=max_grad_norm, beta1=beta1, beta2=beta2)

    def make(groups: Groups) -> Optimizer:
        optimizer = torch.optim.Adam(
            _complete(groups, rate, max_grad_norm),
            betas=(beta1, beta2),
            eps=eps,
            weight_decay=weight_decay,
            **_kernels(groups),
        )
        if all(p.device.type == "cpu" for group in groups for p in group["params"]):
            # A fused optimiser undoes a gradient scaler's scaling by itself, so Lightning refuses to clip before it if
            # the precision is mixed. On a CPU nothing is scaled.
            optimizer._step_supports_amp_scaling = False  # pyright: ignore[reportAttributeAccessIssue, reportPrivateUsage]
        return optimizer

    return make
