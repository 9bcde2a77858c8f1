"""Agents, mixers and learners of one's own that give other shapes than training relies on end before the run begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qmix_lightning as ql
from qmix_lightning import components
from qmix_lightning.agents.base import Agent, AgentState
from qmix_lightning.agents.inputs import InputBuilder
from qmix_lightning.agents.policy import Policy
from qmix_lightning.algorithms.base import Learner, LossTerms
from qmix_lightning.algorithms.q_learning import QLearning
from qmix_lightning.errors import ConfigurationError
from qmix_lightning.mixers.vdn import VDNMixer
from qmix_lightning.registry import Registry
from qmix_lightning.training.network_check import check_networks
from qmix_lightning.types import TrainBatch, TrajectoryBatch
from support.batches import random_batch, value_settings
from support.small_policies import OBS, PLAIN_INPUTS, SPEC, A, N
from support.updates import team, update


class Mixer(nn.Module):
    def forward(self, agent_qs: Tensor, state: Tensor) -> Any:
        return agent_qs.mean(-1)


class KeepsAxis(Mixer):
    def forward(self, agent_qs: Tensor, state: Tensor) -> Any:
        return agent_qs.mean(-1, keepdim=True)


class Pair(Mixer):
    def forward(self, agent_qs: Tensor, state: Tensor) -> Any:
        return agent_qs.mean(-1), state


class AsksForMore(Mixer):
    def forward(self, agent_qs: Tensor, state: Tensor, hidden: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return agent_qs.mean(-1)


class Draws(Mixer):
    """One that counts its calls, and draws in each."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = nn.Buffer(torch.zeros(()))

    def forward(self, agent_qs: Tensor, state: Tensor) -> Any:
        self.calls += 1
        return agent_qs.mean(-1) + torch.randn(())


class ForEachAgent(Mixer):
    def forward(self, agent_qs: Tensor, state: Tensor) -> Any:
        return 2 * agent_qs


class Raises(Mixer):
    def forward(self, agent_qs: Tensor, state: Tensor) -> Any:
        return (agent_qs + state).sum(-1)


class SmallAgent(Agent):
    more_actions = 0

    def __init__(self, *, input_dim: int, n_actions: int, n_agents: int) -> None:
        super().__init__()
        self.n_agents, self.feature_dim = n_agents, 5
        self.encode = nn.Linear(input_dim, 5)
        self.head = nn.Linear(5, n_actions + self.more_actions)

    def initial_state(self, batch_size: int) -> AgentState:
        return (torch.zeros(batch_size, self.n_agents, 5),)

    def body(self, inputs: Tensor, state: AgentState) -> Any:
        features = self.encode(inputs)
        return features, (features,)


class OneActionMore(SmallAgent):
    more_actions = 1


class Averages(SmallAgent):
    def body(self, inputs: Tensor, state: AgentState) -> Any:
        return self.encode(inputs).mean(1), state


class NoTuple(SmallAgent):
    def body(self, inputs: Tensor, state: AgentState) -> Any:
        return self.encode(inputs), state[0]


class NoState(SmallAgent):
    def body(self, inputs: Tensor, state: AgentState) -> Any:
        return self.encode(inputs)


class OneMemory(SmallAgent):
    def initial_state(self, batch_size: int) -> AgentState:
        return (torch.zeros(batch_size, 5),)


class NoBody(SmallAgent):
    body = Agent.body


class NoHead(SmallAgent):
    def __init__(self, *, input_dim: int, n_actions: int, n_agents: int) -> None:
        super().__init__(input_dim=input_dim, n_actions=n_actions, n_agents=n_agents)
        del self.head


class NoLoss(Learner):
    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy


class NoPolicy(Learner):
    def loss(self, batch: TrajectoryBatch) -> LossTerms:
        raise AssertionError("nothing is asked of it")


class CallsItsMixerItself(NoPolicy):
    def __init__(self) -> None:
        super().__init__()
        self.policy, self.mixer = policy_with(SmallAgent), AsksForMore()


class Total(QLearning):
    def loss(self, batch: TrajectoryBatch) -> Any:
        return super().loss(batch).total


class Vector(QLearning):
    def loss(self, batch: TrajectoryBatch) -> LossTerms:
        terms = super().loss(batch)
        return LossTerms(total=terms.total.expand(3), count=terms.count)


class IntegerCount(QLearning):
    def loss(self, batch: TrajectoryBatch) -> LossTerms:
        terms = super().loss(batch)
        return LossTerms(total=terms.total, count=int(terms.count))  # pyright: ignore[reportArgumentType]


class Detached(QLearning):
    def loss(self, batch: TrajectoryBatch) -> LossTerms:
        terms = super().loss(batch)
        return LossTerms(total=terms.total.detach(), count=terms.count)


def policy_with(agent: type[SmallAgent]) -> Policy:
    inputs = InputBuilder(n_agents=N, n_actions=A, obs_dim=OBS, **PLAIN_INPUTS)
    return Policy(inputs=inputs, agent=agent(input_dim=inputs.output_dim, n_actions=A, n_agents=N))


def learner_with(
    mixer: type[nn.Module] = Mixer, agent: type[SmallAgent] = SmallAgent, kind: type[QLearning] = QLearning
) -> QLearning:
    return kind(policy=policy_with(agent), mixer=mixer(), settings=value_settings())


def check(learner: Learner) -> None:
    check_networks(learner, SPEC, algorithm="my_rule", agent="my_agent", mixer="my_mixer")


def refusal(learner: Learner) -> str:
    with pytest.raises(ConfigurationError) as refused:
        check(learner)
    return str(refused.value)


GIVEN = "for agent_qs [1, 5, 3] and state [1, 5, 6]"


@pytest.mark.parametrize(
    ("mixer", "message"),
    [
        (KeepsAxis, f"KeepsAxis.forward returned [1, 5, 1] {GIVEN}; [1, 5] (rows, steps) is needed"),
        (Pair, f"Pair.forward returned ([1, 5], [1, 5, 6]) {GIVEN}; [1, 5] (rows, steps) is needed"),
        (
            AsksForMore,
            f"AsksForMore.forward {GIVEN} raised TypeError: AsksForMore.forward() missing 1 required positional "
            "argument: 'hidden' (HYDRA_FULL_ERROR=1 shows the traceback)",
        ),
    ],
)
def test_a_mixer_of_another_shape(mixer: type[nn.Module], message: str):
    assert refusal(learner_with(mixer=mixer)) == f"mixer 'my_mixer': {message}"


def test_the_line_of_a_mixer_that_raises():
    line = Raises.forward.__code__.co_firstlineno + 1
    message = refusal(learner_with(mixer=Raises))
    assert message.startswith(
        f"mixer 'my_mixer': Raises.forward {GIVEN} raised RuntimeError: The size of tensor a (3) "
    )
    assert f"test_network_check.py:{line}) (HYDRA" in message


@pytest.mark.parametrize(
    ("agent", "message"),
    [
        (OneActionMore, "head returned [4, 3, 5] for features [4, 3, 5]; [4, 3, 4] (rows, agents, actions) is needed"),
        (Averages, "body returned [4, 5] for inputs [4, 3, 12]; [4, 3, 5] (rows, agents, feature_dim) is needed"),
        (NoTuple, "body returned the state [4, 3, 5]; that of initial_state(4) is ([4, 3, 5],)"),
        (NoState, "body must return features and the next state, not [4, 3, 5]"),
        (
            OneMemory,
            "initial_state(4) returned ([4, 5],); a tuple of tensors [4, 3, H] is needed (rows, agents, numbers)",
        ),
    ],
)
def test_an_agent_of_another_shape(agent: type[SmallAgent], message: str):
    assert refusal(learner_with(agent=agent)) == f"agent 'my_agent': {agent.__name__}.{message}"


def test_what_is_missing():
    assert refusal(learner_with(agent=NoBody)) == "agent 'my_agent': NoBody must define body"
    assert refusal(learner_with(agent=NoHead)) == "agent 'my_agent': NoHead must set self.head"
    assert refusal(NoLoss(policy_with(SmallAgent))) == "algorithm 'my_rule': NoLoss must define loss(batch)"
    assert refusal(NoPolicy()) == (
        "algorithm 'my_rule': NoPolicy must keep the policy that it is given, as self.policy"
    )


@pytest.mark.parametrize("mixer", [Mixer, ForEachAgent])
def test_what_fits_is_accepted(mixer: type[nn.Module]):
    check(learner_with(mixer=mixer))


def test_a_learner_may_call_its_mixer_in_its_own_way():
    check(CallsItsMixerItself())


def test_nothing_is_left_of_the_check():
    learner = learner_with(mixer=Draws)
    before = torch.random.get_rng_state()
    check(learner)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert learner.mixer.calls == 0


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Total, "Total.loss must return qmix_lightning.algorithms.base.LossTerms, not Tensor"),
        (Vector, "Vector.loss returned the total [3]; a tensor with one number is needed"),
        (IntegerCount, "IntegerCount.loss returned the count int; a tensor with one number is needed"),
        (Detached, "Detached.loss returned a total without a gradient: was it detached?"),
    ],
)
def test_a_loss_of_another_kind(kind: type[QLearning], message: str):
    batch = TrainBatch(random_batch(0, [3, 2]), env_steps=5, episodes=2, epsilon=0.1)
    with pytest.raises(ConfigurationError) as refused:
        update(team(learner_with(kind=kind)), batch)
    assert str(refused.value) == message


def test_a_run_ends_before_it_writes_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(VDNMixer, "forward", KeepsAxis.forward)
    with pytest.raises(ConfigurationError, match=r"mixer 'vdn': VDNMixer.forward returned \[1, 4, 1\]"):
        ql.train("two_step", "vdn", run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("mixer", "vdn", "mixer 'vdn' must extend torch.nn.Module, which object does not"),
        ("agent", "recurrent", "agent 'recurrent' must extend qmix_lightning.agents.base.Agent, which object does not"),
    ],
)
def test_what_extends_no_base_class(
    kind: str, name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    registry = Registry(kind, "no.group", {})
    registry.register(name, lambda **settings: object())
    monkeypatch.setattr(components, f"{kind.upper()}S", registry)
    with pytest.raises(ConfigurationError) as refused:
        ql.build_lightning("two_step", "vdn", run_dir=tmp_path)
    assert str(refused.value) == message
