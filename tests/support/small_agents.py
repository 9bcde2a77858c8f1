"""Small agents of every kind, with groups that share parameters."""

import torch

from qmix_lightning.agents.feedforward import FeedForwardAgent
from qmix_lightning.agents.recurrent import RecurrentAgent
from support.small_policies import PLAIN_AGENT

N, A, I, H = 3, 4, 6, 8  # noqa: E741
GROUPS = (4, 9, 4)
SHARING = [True, False, "group"]
CLASSES = [RecurrentAgent, FeedForwardAgent]


def make(cls, share=True, seed=0, **changes):
    torch.manual_seed(seed)
    settings = {"input_dim": I, "n_actions": A, "group_of_agent": GROUPS, "hidden_dim": H, "share_parameters": share}
    return cls(**{**settings, **PLAIN_AGENT, **changes})
