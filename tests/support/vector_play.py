"""Random legal play in a vector environment, copied, or summed up in one number."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import torch

from qmix_lightning.types import Transition


def snapshot(transition: Transition) -> list[torch.Tensor]:
    """Copies of a transition's tensors: observation, state, masks of actions and agents, rewards, ends, metrics."""
    shown, t = transition.next, transition
    assert t.agent_reward is not None
    fields = (shown.obs, shown.state, shown.avail_actions, shown.agent_mask, t.reward, t.agent_reward)
    return [field.clone() for field in (*fields, t.terminated, t.truncated, *t.metrics.values())]


def checksum(env: Any, steps: int) -> int:
    """A checksum of everything that the environments show over some joint steps; those that end begin again."""
    e, found = env.num_envs, 0
    rng, episode, begin = np.random.RandomState(0), np.zeros(e, np.int64), torch.ones(e, dtype=torch.bool)
    for _ in range(steps):
        if begin.any():
            episode += begin.numpy()
            shown = env.reset(begin, torch.from_numpy(1000 * np.arange(e) + episode))
        legal = shown.avail_actions.numpy()
        actions = (rng.uniform(size=legal.shape) * legal).argmax(-1)
        outcome = env.step(torch.from_numpy(actions), torch.ones(e, dtype=torch.bool))
        shown = outcome.next
        begin = outcome.terminated | outcome.truncated
        parts = [shown.obs, shown.state, shown.avail_actions, shown.agent_mask, outcome.reward, outcome.terminated]
        parts += [outcome.truncated, *(values[begin] for values in outcome.metrics.values())]
        for part in parts:
            found = zlib.crc32(part.numpy().tobytes(), found)
    return found
