"""Small learners of on-policy data, and batches with what a round adds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from qmix_lightning.agents.policy import Policy
from qmix_lightning.agents.stochastic_policy import StochasticPolicy
from qmix_lightning.algorithms.coma import COMA
from qmix_lightning.algorithms.ppo import IPPO, MAPPO, PPO, PPOSettings
from qmix_lightning.algorithms.pqn import PQN
from qmix_lightning.types import EnvSpec, TrajectoryBatch
from support.small_mixers import small_mixer
from support.small_policies import OBS, SPEC, A, N, S, build_policy

COMA_SETTINGS = {
    "gamma": 0.9,
    "td_lambda": 0.7,
    "normalize_rewards": "none",
    "normalize_values": False,
    "critic_hidden_dim": 10,
    "critic_coef": 0.8,
    "critic_lr": None,
    "entropy_coef": 0.3,
    "target_update_mode": "hard",
    "target_update_every": 200,
    "target_update_unit": "episodes",
    "target_update_tau": 0.01,
    "mask_before_softmax": False,
    "critic_max_grad_norm": 2.0,
}
PQN_SETTINGS = {"gamma": 0.9, "td_lambda": 0.7, "normalize_rewards": "none", "normalize_values": False}


PPO_SETTINGS = {
    "gamma": 0.9,
    "gae_lambda": 0.7,
    "clip_epsilon": 0.2,
    "value_clip": 0.3,
    "value_coef": 0.8,
    "entropy_coef": 0.3,
    "critic_lr": None,
    "normalize_values": True,
    "normalize_advantages": True,
}


def _policy(kind: type[Policy], agent: str, spec: EnvSpec = SPEC, seed: int = 0, **settings) -> Policy:
    torch.manual_seed(seed)
    return build_policy(agent, kind=kind, sizes=(N, A, spec.obs_dim), share="group", **settings)


def make_coma(agent: str = "recurrent", dtype: torch.dtype = torch.float64, **changed) -> COMA:
    """With a target critic that differs from the critic."""
    policy = _policy(StochasticPolicy, agent)
    assert isinstance(policy, StochasticPolicy)
    learner = COMA(policy=policy, spec=SPEC, **{**COMA_SETTINGS, **changed}).to(dtype)
    with torch.no_grad():
        for p in learner.target_critic.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return learner


def make_pqn(mixer: str = "qmix", agent: str = "recurrent", dtype: torch.dtype = torch.float64, **changed) -> PQN:
    """With normalised layers."""
    policy = _policy(Policy, agent, layer_norm=True)
    mixing = small_mixer(mixer, n=N, a=A, obs=OBS, state=S)
    return PQN(policy=policy, mixer=mixing, **{**PQN_SETTINGS, **changed}).to(dtype)


def make_ppo(
    name: str, agent: str = "recurrent", dtype: torch.dtype = torch.float64, critic_obs: bool = True, **changed
) -> PPO:
    """``ippo`` or ``mappo``."""
    given: dict[str, Any] = {
        "policy": _policy(StochasticPolicy, agent),
        "make_policy": lambda spec=SPEC: _policy(StochasticPolicy, agent, spec, seed=1),
        "settings": PPOSettings(**{**PPO_SETTINGS, **changed}),
    }
    made = MAPPO(**given, spec=SPEC, critic_obs=critic_obs) if name == "mappo" else IPPO(**given)
    return made.to(dtype)


@torch.no_grad()
def changed_since(learner: PPO, seed: int = 3) -> PPO:
    """The learner after some updates of a round: another policy, and another critic, than played and valued it."""
    g = torch.Generator().manual_seed(seed)
    for p in learner.parameters():
        p.add_(0.2 * torch.randn(p.shape, generator=g, dtype=p.dtype))
    return learner


def with_round(batch: TrajectoryBatch, seed: int, epsilon: float = 0.3) -> TrajectoryBatch:
    """``batch`` with the epsilon and the draws of a round."""
    rows = batch.batch_size
    draws = torch.rand(rows, N, generator=torch.Generator().manual_seed(seed))
    return replace(batch, extras={"epsilon": torch.full((rows,), epsilon), "draws": draws})
