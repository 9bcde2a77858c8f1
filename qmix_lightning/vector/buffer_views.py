"""Show the buffers that environments write as tensors."""

from __future__ import annotations

import torch

from qmix_lightning.types import EnvSpec, Observation, Transition
from qmix_lightning.worker.buffers import Buffers

__all__ = ["transition_view"]


def transition_view(buffers: Buffers, spec: EnvSpec) -> Transition:
    """Return views of all of ``buffers``, so that a step makes no tensor; ``next`` is what a reset shows, too."""
    return Transition(
        next=Observation(
            obs=torch.from_numpy(buffers.obs),
            state=torch.from_numpy(buffers.state),
            avail_actions=torch.from_numpy(buffers.avail_actions),
            agent_mask=torch.from_numpy(buffers.agent_mask),
        ),
        reward=torch.from_numpy(buffers.reward),
        terminated=torch.from_numpy(buffers.terminated),
        truncated=torch.from_numpy(buffers.truncated),
        agent_reward=torch.from_numpy(buffers.agent_reward),
        metrics={name: torch.from_numpy(buffers.metrics[m]) for m, name in enumerate(spec.episode_metrics)},
    )
