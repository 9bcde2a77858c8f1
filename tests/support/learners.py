"""Real learners of every kind, small, with targets that differ from their online networks."""

import torch

from qmix_lightning.agents.feedforward import FeedForwardAgent
from qmix_lightning.agents.inputs import InputBuilder
from qmix_lightning.agents.policy import Policy
from qmix_lightning.agents.recurrent import RecurrentAgent
from qmix_lightning.algorithms.q_learning import QLearning
from support.batches import OBS, PLAIN_AGENT, PLAIN_INPUTS, A, N, S, value_settings
from support.small_mixers import small_mixer

AGENTS = {"recurrent": RecurrentAgent, "feedforward": FeedForwardAgent}
MIXERS = ("none", "vdn", "qmix", "qplex", "qatten")


def make_learner(mixer="qmix", agent="recurrent", *, share=True, dtype=torch.float64, **settings) -> QLearning:
    torch.manual_seed(0)
    inputs = InputBuilder(n_agents=N, n_actions=A, obs_dim=OBS, **PLAIN_INPUTS)
    network = AGENTS[agent](
        input_dim=inputs.output_dim,
        n_actions=A,
        group_of_agent=[0, 1, 0],
        hidden_dim=8,
        share_parameters=share,
        **PLAIN_AGENT,
    )
    learner = QLearning(
        policy=Policy(inputs=inputs, agent=network),
        mixer=small_mixer(mixer, n=N, a=A, obs=OBS, state=S),
        settings=value_settings(**settings),
    ).to(dtype)
    with torch.no_grad():
        for p in [*learner.target_policy.parameters(), *learner.target_mixer.parameters()]:
            p.add_(0.2 * torch.randn_like(p))
    return learner
