"""Learners of every kind, and one update of them as Lightning has it done."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from qmix_lightning.training.module import TeamModule
from qmix_lightning.types import TrainBatch, TrajectoryBatch
from support import joint_learners, on_policy_learners
from support.batches import LENGTHS, random_batch
from support.learners import MIXERS, make_learner

NORMALIZED = {"normalize_rewards": "standardize", "normalize_values": True, "target_update_mode": "soft"}
MADE: dict[str, Any] = {
    **{f"qmix, {m}": lambda m=m: make_learner(m) for m in MIXERS},
    "qmix, feedforward": lambda: make_learner(agent="feedforward"),
    "qmix, an agent each": lambda: make_learner(share=False),
    "qmix, agents by group": lambda: make_learner(share="group"),
    "qmix, dead agents' no-ops": lambda: make_learner(dead_agents="no_op"),
    "qmix, lambda returns": lambda: make_learner(returns="td_lambda"),
    "qmix, normalized": lambda: make_learner(**NORMALIZED),
    **{name: lambda name=name: joint_learners.make(name) for name in joint_learners.LEARNERS},
    "pqn": on_policy_learners.make_pqn,
    "coma": on_policy_learners.make_coma,
    **{name: lambda name=name: on_policy_learners.make_ppo(name) for name in ("ippo", "mappo")},
}


def batch_for(name: str, lengths: list[int] = LENGTHS) -> TrajectoryBatch:
    batch = random_batch(0, lengths)
    if name == "coma":
        return on_policy_learners.with_round(batch, 1)
    if name in ("ippo", "mappo"):
        batch = on_policy_learners.with_round(batch, 1).to(torch.device("cpu"), torch.float64)
        batch.extras |= on_policy_learners.make_ppo(name).prepare_round(batch)
    if name.startswith("qmix"):
        batch.extras["weight"] = torch.rand(len(lengths))
    return batch


def update(module: TeamModule, batch: TrainBatch) -> None:
    """What Lightning has the module do for one batch."""
    optimizer = module.configure_optimizers()
    module._trainer = SimpleNamespace(optimizers=[optimizer], global_step=0, world_size=1, log_every_n_steps=1)  # pyright: ignore
    loss = module.training_step(batch, 0)
    loss.backward()
    module.configure_gradient_clipping(optimizer)
    optimizer.step()
    module.learner.after_update(episodes=1000, updates=1000)


def team(learner) -> TeamModule:
    def rmsprop(groups):
        return torch.optim.RMSprop([{"max_grad_norm": 10.0, **g} for g in groups], lr=1e-3, foreach=True)

    return TeamModule(learner=learner, optimizer=rmsprop)
