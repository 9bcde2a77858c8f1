"""A game with everything that a policy may meet, and policies for it with weights at random."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from pettingzoo import ParallelEnv

from qmix_lightning.components import build_learner, env_maker
from qmix_lightning.policies import StoredPolicy
from support.compositions import run_config

ENV = ["env=pettingzoo", "env.id=support.policies:Skirmish"]


class Skirmish(ParallelEnv):
    """Two scouts and a tank, who see different amounts, have different actions, and may die early; masks and a set.

    Observations are three numbers of one's own (a tank: five), then two enemies of two numbers each.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012
        "name": "skirmish",
        "episode_metrics": ("won",),
        "obs_entities": ({"name": "enemies", "start": 1, "count": 2, "size": 2, "first_action": 1},),
        "obs_pictures": ({"name": "both enemies", "start": 1, "shape": (2, 2, 1)},),
    }
    episode_limit = 9

    def __init__(self) -> None:
        self.possible_agents = ["scout_0", "tank_0", "scout_1"]
        self._sizes = {"scout_0": 6, "tank_0": 9, "scout_1": 6}
        self._actions = {"scout_0": 3, "tank_0": 5, "scout_1": 3}

    def observation_space(self, agent: str) -> Any:
        return spaces.Box(-np.inf, np.inf, (self._sizes[agent],), np.float32)

    def action_space(self, agent: str) -> Any:
        return spaces.Discrete(self._actions[agent])

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self._rng = np.random.default_rng(seed)
        self.agents, self._t = list(self.possible_agents), 0
        return self._seen()

    def _seen(self) -> tuple[dict[str, Any], dict[str, Any]]:
        observations = {a: self._rng.normal(2.0, 3.0, self._sizes[a]).astype(np.float32) for a in self.agents}
        for seen in observations.values():
            if self._rng.random() < 0.5:
                seen[3:5] = 0.0  # the second enemy is out of sight
        masks = {a: self._rng.random(self._actions[a]) < 0.7 for a in self.agents}
        for mask in masks.values():
            mask[0] = True
        return observations, {a: {"action_mask": masks[a], "won": 0.0} for a in self.agents}

    def step(self, actions: dict[str, Any]) -> Any:
        self._t += 1
        acted, over = list(self.agents), self._t >= 6 + int(self._rng.integers(0, 4))
        dead = {a for a in acted if over or self._rng.random() < 0.1}
        self.agents = [a for a in acted if a not in dead]
        over = not self.agents
        shown, self.agents = self.agents, acted  # those that die are shown once more
        observations, infos = self._seen()
        self.agents = shown
        rewards = {a: float(actions[a]) for a in acted}
        return observations, rewards, {a: a in dead for a in acted}, dict.fromkeys(acted, False), infos


def stored_policy(*overrides: str, seed: int = 0) -> StoredPolicy:
    """A policy of a composed configuration, by default for ``Skirmish``, with weights and statistics at random."""
    typed = [] if any(o.startswith("env=") for o in overrides) else ENV
    config = run_config(*typed, "agent.hidden_dim=16", *overrides)
    env = env_maker(config.env)(1)
    spec = env.spec
    env.close()
    torch.manual_seed(seed)
    learner = build_learner(config, spec)
    with torch.no_grad():
        for name, buffer in learner.named_buffers():
            if "moments" in name:
                buffer.copy_(torch.rand_like(buffer) * 3 + 1)
        for parameter in learner.policy.parameters():
            parameter.mul_(2.0)  # choices then depend on what is seen
    tensors = {n: t for n, t in learner.state_dict().items() if isinstance(t, torch.Tensor)}
    return StoredPolicy(
        source="a test's policy",
        spec=spec,
        env=config.env,
        agent=config.agent,
        mixer=config.mixer,
        algorithm=config.algorithm,
        weights={n.removeprefix("policy."): t for n, t in tensors.items() if n.startswith("policy.")},
        learner_weights={n: t for n, t in tensors.items() if not n.startswith("policy.")},
        mask_before_softmax=bool(config.algorithm.get("mask_before_softmax", True)),
    )
