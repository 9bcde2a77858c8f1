"""How fast the learner is, beside a plain one in the same run.

    python benchmarks/learner.py [--cases small large ...] [--turns 15] [--output learner.json]
    python benchmarks/learner.py --growth      # agents 2 to 64, episode length 25 to 400

An update of recurrent QMIX (hidden 64, mixer 32, hypernetworks of two layers of 64, double Q): loss, gradient, clipping
and a step of RMSprop, on a batch of 32 episodes that is sampled already. ``plain`` is the textbook learner of
``plain.py``; both start from the same weights, and their first losses are compared before anything is timed. The
learners take turns, so that ratios hold on a machine that does other work too; a turn's ratio is that of its own
timings. Torch uses one thread unless told otherwise.

Cases: ``small`` is 32 x 60 steps, 5 agents, observation 80, state 120, 11 actions; ``large`` is 32 x 120 steps, 27
agents, observation 285, state 1199, 36 actions; both at full length with all agents alive. ``smax_3m`` and
``lbf_8x8_2p_3f`` are batches of real episodes, lengths and deaths as they come after some training; there the plain
learner pads to the longest episode of the batch, and ``full`` is our learner on the same batch with nothing left out.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from plain import PlainBatch, PlainLearner
from torch import nn

from qmix_lightning.algorithms.q_learning import QLearning
from qmix_lightning.build import build_learner, build_run
from qmix_lightning.config import RunConfig, validate
from qmix_lightning.summary import versions
from qmix_lightning.types import EnvSpec, TrajectoryBatch

HIDDEN, EMBED, HYPERNET = 64, 32, 64


@dataclass(frozen=True)
class Shape:
    """Sizes of a batch, in the order of the axes."""

    episodes: int
    steps: int
    agents: int
    actions: int
    obs: int
    state: int

    @property
    def gflop(self) -> float:
        """What the matrix products of one update need at full length: forward thrice (online, target, and the
        gradient of the weights) and once more for the gradient of what flows between layers."""
        inputs = self.obs + self.actions + self.agents
        first, inner = inputs * HIDDEN, 6 * HIDDEN * HIDDEN + HIDDEN * self.actions
        rows = self.episodes * (self.steps + 1) * self.agents
        hyper = self.state * (2 * HYPERNET + 2 * EMBED)
        mixing = HYPERNET * EMBED * (self.agents + 1) + EMBED + self.agents * EMBED + EMBED
        return 2e-9 * (rows * (3 * first + 4 * inner) + self.episodes * self.steps * (3 * hyper + 4 * mixing))


SHAPES = {"small": Shape(32, 60, 5, 11, 80, 120), "large": Shape(32, 120, 27, 36, 285, 1199)}
REAL = ("smax_3m", "lbf_8x8_2p_3f")
PEER_MS = {"small": 64.6, "large": 695.0}
"""PyMARL's update at one thread on a machine that multiplied matrices at 95 GFLOP/s."""
PEER_GFLOPS = 95.0


def random_batch(shape: Shape) -> TrajectoryBatch:
    """Full episodes, everyone alive, most actions legal."""
    b, t, n, a = shape.episodes, shape.steps, shape.agents, shape.actions
    avail = torch.rand(b, t + 1, n, a) > 0.3
    avail[..., 0] = True
    never = torch.zeros(b, t, dtype=torch.bool)
    ends = never.clone()
    ends[:, -1] = True
    return TrajectoryBatch(
        obs=torch.randn(b, t + 1, n, shape.obs),
        state=torch.randn(b, t + 1, shape.state),
        avail_actions=avail,
        agent_mask=torch.ones(b, t + 1, n, dtype=torch.bool),
        actions=torch.where(avail[:, :-1], torch.rand(b, t, n, a), -1.0).argmax(-1),
        reward=torch.randn(b, t),
        terminated=ends,
        truncated=never,
        filled=~never,
    )


def shape_of(batch: TrajectoryBatch) -> Shape:
    b, t, n = batch.actions.shape
    return Shape(b, t, n, batch.avail_actions.shape[-1], batch.obs.shape[-1], batch.state.shape[-1])


def configuration(*overrides: str) -> RunConfig:
    """The configuration that a command line with these overrides would have."""
    with initialize_config_module("qmix_lightning.conf", version_base=None):
        composed = compose("train", [*overrides, "mixer=qmix_pymarl"])
    return validate(OmegaConf.to_container(composed, resolve=True))


def our_learner(shape: Shape) -> QLearning:
    n = shape.agents
    spec = EnvSpec(
        n_agents=n,
        n_actions=shape.actions,
        obs_dim=shape.obs,
        state_dim=shape.state,
        obs_dims=(shape.obs,) * n,
        action_counts=(shape.actions,) * n,
        agent_names=tuple(f"agent_{i}" for i in range(n)),
        group_of_agent=(0,) * n,
    )
    learner = build_learner(configuration("algorithm=qmix", "agent=recurrent"), spec)
    assert isinstance(learner, QLearning)
    return learner


def plain_learner(shape: Shape, ours: QLearning) -> PlainLearner:
    """The plain learner with our weights."""
    plain = PlainLearner(
        n_agents=shape.agents,
        n_actions=shape.actions,
        obs_dim=shape.obs,
        state_dim=shape.state,
        hidden_dim=HIDDEN,
        embed_dim=EMBED,
        hypernet_dim=HYPERNET,
    )
    agent: Any = ours.policy.agent
    pairs: list[tuple[nn.Parameter, nn.Parameter]] = []
    for mine, layer in ((plain.agent.encode, agent.encode), (plain.agent.decode, agent.head)):
        pairs += [(mine.weight, layer.weight), (mine.bias, layer.bias)]
    cell = plain.agent.cell
    for mine, theirs in ((("weight_ih", "bias_ih"), agent.input_gates), (("weight_hh", "bias_hh"), agent.state_gates)):
        pairs += [(getattr(cell, mine[0]), theirs.weight), (getattr(cell, mine[1]), theirs.bias)]
    mixers = dict(ours.mixer.named_parameters())
    pairs += [(p, mixers[name]) for name, p in plain.mixer.named_parameters()]
    with torch.no_grad():
        for mine, theirs in pairs:
            mine.copy_(theirs.reshape(mine.shape))
    plain.target_agent.load_state_dict(plain.agent.state_dict())
    plain.target_mixer.load_state_dict(plain.mixer.state_dict())
    return plain


class OurUpdate:
    """What the module does for one batch, without Lightning around it."""

    def __init__(self, learner: QLearning, batch: TrajectoryBatch, precision: str) -> None:
        self.learner = learner
        self.batch = batch
        self.precision = precision
        self.optimizer = torch.optim.RMSprop(learner.parameter_groups(), lr=5e-4, alpha=0.99, eps=1e-5, foreach=True)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]

    def loss(self) -> torch.Tensor:
        device = self.batch.obs.device.type
        low = torch.autocast(device, torch.bfloat16) if self.precision == "bf16-mixed" else nullcontext()
        with low:
            terms = self.learner.loss(self.batch)
        return terms.total / terms.count

    def __call__(self) -> None:
        loss = self.loss()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 10.0)
        self.optimizer.step()


def real_batch(name: str, train_steps: int) -> TrajectoryBatch:
    """32 episodes of the replay after some training of the task's own recipe."""
    raise NotImplementedError


def matrix_gflops(dtype: torch.dtype, seconds: float = 0.3) -> float:
    """The best rate of a product of two 1024 x 1024 matrices."""
    a, b, c = (torch.rand(1024, 1024).to(dtype) for _ in range(3))
    best, begun = float("inf"), time.perf_counter()
    while time.perf_counter() - begun < seconds:
        start = time.process_time()
        torch.mm(a, b, out=c)
        best = min(best, time.process_time() - start)
    return 2 * 1024**3 / best / 1e9


def take_turns(updates: dict[str, Callable[[], None]], turns: int, seconds: float) -> dict[str, list[float]]:
    """Milliseconds of an update of each, measured in turns of about ``seconds``."""
    repeats = {}
    for name, update in updates.items():
        update()
        begun = time.process_time()
        update()
        repeats[name] = max(1, round(seconds / (time.process_time() - begun)))
    taken: dict[str, list[float]] = {name: [] for name in updates}
    for _ in range(turns):
        for name, update in updates.items():
            begun = time.process_time()
            for _ in range(repeats[name]):
                update()
            taken[name].append((time.process_time() - begun) / repeats[name] * 1e3)
    return taken
