"""Real learners of every kind, small, with targets that differ from their online networks."""

import torch

from qmix_lightning.algorithms.q_learning import QLearning
from support.batches import value_settings
from support.small_mixers import small_mixer
from support.small_policies import OBS, A, N, S, build_policy

MIXERS = ("none", "vdn", "qmix", "qplex", "qatten")


def make_learner(mixer="qmix", agent="recurrent", *, share=True, dtype=torch.float64, **settings) -> QLearning:
    torch.manual_seed(0)
    learner = QLearning(
        policy=build_policy(agent, share=share),
        mixer=small_mixer(mixer, n=N, a=A, obs=OBS, state=S),
        settings=value_settings(**settings),
    ).to(dtype)
    with torch.no_grad():
        for p in [*learner.target_policy.parameters(), *learner.target_mixer.parameters()]:
            p.add_(0.2 * torch.randn_like(p))
    return learner
