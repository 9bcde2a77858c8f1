"""Updates beside PyMARL's: its networks, optimiser and batches, then the same losses and parameters."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qmix_lightning.algorithms.q_learning import QLearning
from qmix_lightning.mixers.qmix import QMixer
from qmix_lightning.optimizers import clip_by_norm
from qmix_lightning.types import TrajectoryBatch
from support.batches import value_settings
from support.small_policies import build_policy

DATA = Path(__file__).parents[1] / "data" / "pymarl"
NAMES = {
    "policy.agent.encode": "agent/fc1",
    "policy.agent.head": "agent/fc2",
    "mixer.weight_1": "mixer/hyper_w_1",
    "mixer.weight_2": "mixer/hyper_w_final",
    "mixer.bias_1": "mixer/hyper_b_1",
    "mixer.bias_2": "mixer/V",
    "policy.agent.input_gates.weight": "agent/rnn.weight_ih",
    "policy.agent.input_gates.bias": "agent/rnn.bias_ih",
    "policy.agent.state_gates.weight": "agent/rnn.weight_hh",
    "policy.agent.state_gates.bias": "agent/rnn.bias_hh",
}
"""How parameters, or what they begin with, are called here and there."""


def theirs(name: str) -> str:
    begins = next(ours for ours in NAMES if name.startswith(ours))
    return NAMES[begins] + name.removeprefix(begins)


class Case:
    """One folder of the data, and a learner that goes on where PyMARL had saved."""

    def __init__(self, name: str, dead_agents: str) -> None:
        folder = DATA / name
        self.numbers = np.load(folder / "batches_and_expected.npz")
        config = json.loads((folder / "config.json").read_text())
        n = config["n_agents"]
        sizes = (n, config["n_actions"], self.numbers["batch0/obs"].shape[-1])
        policy = build_policy(sizes=sizes, groups=[0] * n, hidden_dim=config["rnn_hidden_dim"])
        mixer = QMixer(
            n_agents=n,
            state_dim=config["state_shape"],
            embed_dim=config["mixing_embed_dim"],
            hypernet_layers=config["hypernet_layers"],
            hypernet_dim=config["hypernet_embed"],
            positivity="abs",
            init_scale=1.0,
        )
        settings = value_settings(gamma=config["gamma"], double_q=config["double_q"], dead_agents=dead_agents)
        self.learner = QLearning(policy=policy, mixer=mixer, settings=settings)
        self.clip = config["grad_norm_clip"]
        self._load(folder, config)

    def trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.learner.named_parameters() if p.requires_grad}

    def _load(self, folder: Path, config: dict) -> None:
        saved: dict[str, Tensor] = {}
        for part in ("agent", "mixer"):
            values = torch.load(folder / f"{part}.th", weights_only=True)
            saved |= {f"{part}/{name}": value for name, value in values.items()}
        state = torch.load(folder / "opt.th", weights_only=True)["state"]
        averages = {name: state[i]["square_avg"] for i, name in enumerate(saved)}  # by PyMARL's order
        ours = self.trained()
        assert {theirs(name) for name in ours} == saved.keys()
        self.optimizer = torch.optim.RMSprop(
            ours.values(), lr=config["lr"], alpha=config["optim_alpha"], eps=config["optim_eps"]
        )
        with torch.no_grad():
            for name, p in ours.items():
                p.copy_(saved[theirs(name)].view_as(p))
                self.optimizer.state[p] = {"step": torch.zeros(()), "square_avg": averages[theirs(name)].view_as(p)}
        self.learner.after_update(episodes=1000, updates=0)  # their files hold no targets: these are copies

    def batch(self, number: int) -> TrajectoryBatch:
        given = {name: torch.from_numpy(self.numbers[f"batch{number}/{name}"]) for name in (
            "obs", "state", "actions", "avail_actions", "reward", "terminated", "filled", "truncated_of_ours"
        )}  # fmt: skip
        return TrajectoryBatch(
            obs=given["obs"],
            state=given["state"],
            avail_actions=given["avail_actions"].bool(),
            agent_mask=(given["obs"] != 0).any(-1),
            actions=given["actions"][:, :-1, :, 0],
            reward=given["reward"][:, :-1, 0],
            terminated=given["terminated"][:, :-1, 0].bool(),
            truncated=given["truncated_of_ours"],
            filled=given["filled"][:, 1:, 0].bool(),  # theirs marks observations
        )

    def update(self, number: int) -> float:
        terms = self.learner.loss(self.batch(number))
        loss = terms.total / terms.count
        self.optimizer.zero_grad()
        loss.backward()
        clip_by_norm(list(self.trained().values()), self.clip)
        self.optimizer.step()
        return loss.item()

    def furthest(self) -> float:
        """The largest difference of a parameter from PyMARL's after 20 updates."""
        expected = {name: torch.from_numpy(self.numbers[f"after20/{theirs(name)}"]) for name in self.trained()}
        return max((p.detach() - expected[name].view_as(p)).abs().max().item() for name, p in self.trained().items())


@pytest.mark.parametrize("name", ["living_agents", "dying_agents"])
def test_twenty_updates_are_pymarls(name: str):
    case = Case(name, "no_op")
    losses = [case.update(i % 6) for i in range(20)]
    assert losses == pytest.approx(case.numbers["losses"].tolist(), rel=1e-5)
    assert case.furthest() < 1e-6


def test_the_default_is_another_loss_where_agents_die_and_only_there():
    living, dying = Case("living_agents", "zero"), Case("dying_agents", "zero")
    assert not dying.batch(0).mask_invalid().agent_mask[dying.batch(0).row_valid()].all()
    assert living.update(0) == pytest.approx(living.numbers["losses"][0], rel=1e-6)
    assert dying.update(0) != pytest.approx(dying.numbers["losses"][0], rel=1e-3)
