"""One-step games learned from uniform data: in this process, without a run, and by their recipes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qmix_lightning.envs.matrix import Matrix
from qmix_lightning.types import EnvSpec, TrajectoryBatch
from support import inprocess
from support.batches import value_settings
from support.joint_learners import LEARNERS
from support.small_mixers import small_mixer
from support.small_policies import build_policy

CELLS = torch.tensor(list(product(range(3), repeat=2)))  # [9, 2]


def plays(actions: Tensor, payoff: Tensor) -> TrajectoryBatch:
    """Whole episodes of the game: ``actions [B, 2]``."""
    b = len(actions)
    begins = torch.tensor([True, False])
    alive = begins[None, :, None].expand(b, 2, 2)
    legal = alive[..., None] | (torch.arange(3) == 0)
    ends = torch.ones(b, 1, dtype=torch.bool)
    return TrajectoryBatch(
        obs=alive[..., None].float(),
        state=begins[None, :, None].expand(b, 2, 1).float(),
        avail_actions=legal,
        agent_mask=alive,
        actions=actions[:, None],
        reward=payoff[actions[:, 0], actions[:, 1]][:, None],
        terminated=ends,
        truncated=~ends,
        filled=ends,
    )


@dataclass
class Game:
    """A trained learner and what it says of every joint action, each ``[3, 3]``."""

    learner: Any
    payoff: Tensor

    @cached_property
    def batch(self) -> TrajectoryBatch:
        return plays(CELLS, self.payoff).mask_invalid()

    @cached_property
    def agent_values(self) -> Tensor:
        """``[9, 1, 2, 3]``."""
        with torch.no_grad():
            return self.learner.policy.unroll(self.batch)[:, :1]

    def greedy(self) -> tuple[int, int]:
        first, second = self.agent_values[0, 0].argmax(-1).tolist()
        return first, second

    def mixed_table(self) -> Tensor:
        """``Q_tot`` of weighted QMIX."""
        with torch.no_grad():
            q_tot = self.learner.mix(
                self.learner.mixer, self.agent_values, self.batch.actions, self.batch, slice(0, -1)
            )
        return q_tot.reshape(3, 3)

    def central_table(self) -> Tensor:
        """``Q*`` of weighted QMIX."""
        learner, batch = self.learner, self.batch
        with torch.no_grad():
            q = learner.central_policy.unroll(batch)[:, :1]
            return learner.mix_central(learner.central_mixer, q, batch.actions, batch, slice(0, -1)).reshape(3, 3)

    def summed_table(self) -> Tensor:
        """``Q'_jt`` of QTRAN."""
        return self.agent_values[0, 0, 0][:, None] + self.agent_values[0, 0, 1][None]

    def joint_table(self) -> Tensor:
        """``Q_jt`` of QTRAN."""
        batch, before = self.batch, slice(0, 1)
        with torch.no_grad():
            features = self.learner.policy.unroll_features(batch)[:, before]
            values = self.learner.joint.of(features, batch.actions, batch.agent_mask[:, before], batch.state[:, before])
        return values.reshape(3, 3)

    def state_value(self) -> Tensor:
        """``V_jt`` of QTRAN."""
        batch, before = self.batch, slice(0, 1)
        with torch.no_grad():
            features = self.learner.policy.unroll_features(batch)[:, before]
            return self.learner.state_value(features, batch.agent_mask[:, before], batch.state[:, before])[0, 0]


def train_on(preset: str, name: str, *, seed: int, updates: int, lr: float = 5e-3, **changed: Any) -> Game:
    """Learn the game from 32 uniformly drawn joint actions an update."""
    torch.manual_seed(seed)
    env = Matrix(num_envs=1, preset=preset)
    payoff = torch.tensor(env.exact_q_values(1.0)["1"])
    learner = small_game_learner(name, env.spec, **changed)
    optimizer = torch.optim.Adam(learner.parameters(), lr=lr)
    for update in range(1, updates + 1):
        terms = learner.loss(plays(torch.randint(3, (32, 2)), payoff))
        optimizer.zero_grad()
        (terms.total / terms.count).backward()
        optimizer.step()
        learner.after_update(episodes=32 * update, updates=update)
    return Game(learner, payoff)


def small_game_learner(name: str, spec: EnvSpec, **changed: Any) -> Any:
    kind, mixer, _ = LEARNERS[name]

    make_policy = partial(build_policy, "feedforward", sizes=(2, 3, 1), groups=spec.group_of_agent, hidden_dim=64)
    weighted = {"alpha": 0.1, "central_hidden_dim": 64, "central_hidden_layers": 2}
    qtran = {"lambda_opt": 1.0, "lambda_nopt": 1.0, "joint_hidden_dim": 64, "joint_state": False}
    own = weighted | {"make_policy": make_policy} if name.endswith("qmix") else qtran
    given = own | {"policy": make_policy(), "spec": spec, "settings": value_settings()} | changed
    large = {"embed_dim": 32} if mixer == "qmix" else {}
    return kind(mixer=small_mixer(mixer, n=2, a=3, obs=1, state=1, **large), **given)


def recipe_returns(name: str, folder: Path) -> list[float]:
    """The greedy returns of ``experiment=matrix_qtran_NAME`` with seeds 1 to 5."""
    found = []
    for seed in range(1, 6):
        run_dir = folder / f"{name}{seed}"
        arguments = [f"experiment=matrix_qtran_{name}", f"seed={seed}", f"run_dir={run_dir}", "logger=none"]
        inprocess.succeed([*arguments, "trainer.enable_progress_bar=false"])
        found.append(json.loads((run_dir / "summary.json").read_text())["eval"]["return_mean"])
    return found
