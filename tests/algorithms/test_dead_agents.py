"""Dead agents: worth nothing, or what their no-op is worth; exact targets, and what is learned of either."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from qmix_lightning.agents.base import Agent
from qmix_lightning.agents.policy import Policy
from qmix_lightning.agents.recurrent import RecurrentAgent
from qmix_lightning.build import _learner
from qmix_lightning.types import EnvSpec, HostMasks, TrajectoryBatch
from support import joint_learners
from support.batches import LENGTHS, double_batch
from support.cases import every_value
from support.compositions import run_config
from support.deaths import GAMMA, HIDDEN, SACRIFICE, episodes, fitted
from support.deaths import make_learner as make_for_games
from support.garbage import INF, NAN, assert_unchanged, dirty_dead, dirty_padding, outcome
from support.learners import MIXERS, make_learner
from support.plain_losses.q_learning import episode_values, plain_loss
from support.small_policies import A, N

LEARNERS: dict[str, Callable[..., Any]] = {
    **{f"qmix, {m}": lambda m=m, **settings: make_learner(m, **settings) for m in MIXERS},
    "vdn, feedforward": lambda **settings: make_learner("vdn", "feedforward", **settings),
    "qmix, an agent each": lambda **settings: make_learner(share=False, **settings),
    **{name: lambda name=name, **settings: joint_learners.make(name, **settings) for name in joint_learners.LEARNERS},
}


def batch(*, revived: bool) -> TrajectoryBatch:
    """Agents die at random; ``revived``: some live again, and some come late."""
    data = double_batch()
    if not revived:
        data.agent_mask = data.agent_mask.int().cummin(dim=1).values.bool()
    assert not data.agent_mask[data.row_valid()].all()
    return data


def as_if_alive(data: TrajectoryBatch) -> TrajectoryBatch:
    """The same, told as an environment would where nobody dies: who did sees zeros and can do nothing."""
    alive = data.agent_mask
    no_op = torch.arange(A) == 0
    return replace(
        data,
        obs=torch.where(alive[..., None], data.obs, 0.0),
        avail_actions=torch.where(alive[..., None], data.avail_actions, no_op),
        actions=torch.where(alive[:, :-1], data.actions, 0),
        agent_mask=torch.ones_like(alive),
    )


# -- what is computed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LEARNERS)
def test_a_dead_agent_is_one_that_can_do_nothing(name: str):
    data = batch(revived=False)
    terms, gradients = outcome(LEARNERS[name](dead_agents="no_op"), data)
    plain, plain_gradients = outcome(LEARNERS[name](), as_if_alive(data))
    assert terms.count == plain.count
    torch.testing.assert_close(terms.total, plain.total)
    for parameter, gradient in gradients.items():
        torch.testing.assert_close(gradient, plain_gradients[parameter], msg=parameter)
    assert outcome(LEARNERS[name](), data)[0].total.item() != pytest.approx(terms.total.item(), rel=1e-4)


@pytest.mark.parametrize("mixer", MIXERS)
def test_loss_equals_plain_loops(mixer: str):
    data, learner = batch(revived=True), make_learner(mixer, dead_agents="no_op")
    terms = learner.loss(data)
    total, count = plain_loss(learner, data, LENGTHS, mixer)
    assert terms.count.item() == count
    assert terms.total.item() == pytest.approx(total, rel=1e-6)


def test_without_a_mixer_every_slot_of_every_step_is_learned():
    data = batch(revived=True)
    assert make_learner("none", dead_agents="no_op").loss(data).count.item() == N * sum(LENGTHS)
    assert make_learner("none").loss(data).count.item() == (data.agent_mask[:, :-1] & data.filled[..., None]).sum()


class StepByStep(RecurrentAgent):
    """The same network, unrolled over whole batches as an agent of a plugin is."""

    unroll_body = Agent.unroll_body


@pytest.mark.parametrize("way", ["packed", "packed by agent", "by rows", "step by step", "on another device"])
def test_memory_runs_on_in_death_and_starts_anew_with_a_new_life(way: str):
    data = batch(revived=True)
    policy = make_learner("none", share=way != "packed by agent").policy
    if way in ("by rows", "step by step"):
        policy.agent.columns = 0
    if way == "step by step":
        policy.agent.__class__ = StepByStep
    clean = data.mask_invalid()
    if way == "on another device":
        clean.host = HostMasks(clean.agent_mask, clean.filled)
    with torch.no_grad():
        q = policy.unroll(clean.with_dead_present())
    told = as_if_alive(data)
    for b, length in enumerate(LENGTHS):
        for i in range(N):
            life = 0
            for t in range(length + 1):
                if t > 0 and data.agent_mask[b, t, i] and not data.agent_mask[b, t - 1, i]:
                    life = t
                with torch.no_grad():
                    expected = values_since(life, t, policy, told, b)[i]
                torch.testing.assert_close(q[b, t, i], expected)
    alive = clean.agent_mask
    with torch.no_grad():  # who is alive has the values by which it acts
        torch.testing.assert_close(q[alive], policy.unroll(clean)[alive])
        acted = episode_values(policy, data, 0, LENGTHS[0])
    torch.testing.assert_close(q[0][alive[0]], torch.stack(acted)[alive[0]])


def values_since(first: int, last: int, policy: Policy, told: TrajectoryBatch, b: int) -> torch.Tensor:
    """Values ``[N, A]`` at step ``last`` of memories that begin empty at step ``first``."""
    state, q = policy.initial_state(1), torch.zeros(1, N, A)
    for t in range(first, last + 1):
        q, state = policy.agent(policy.inputs(told.obs[b, t][None], told.last_actions()[b, t][None]), state)
    return q[0]


@pytest.mark.parametrize(("garbage", "name"), every_value([NAN, INF, "random"], LEARNERS))
def test_what_the_dead_see_may_be_anything(name: str, garbage: Any):
    clean = batch(revived=True)
    dirty = dirty_dead(dirty_padding(clean, garbage), garbage)
    assert_unchanged(LEARNERS[name](dead_agents="no_op"), clean, dirty)


def test_bad_setting():
    with pytest.raises(ValueError, match=r"^dead_agents must be 'zero' or 'no_op', not 'one'$"):
        make_learner(dead_agents="one")


# -- the game in which one dies for the team ------------------------------------------------------------------------


def test_the_target_at_a_death_worked_out_by_hand():
    """The dead agent's no-op is worth 3, another agent's action 1 is worth 5; nothing is paid at the first step."""
    data = episodes(SACRIFICE, copies=1)  # in row 0 agent 0 dies of what it does first
    y = {}
    for dead_agents in ("no_op", "zero"):
        learner = make_for_games("none", dead_agents=dead_agents)
        with torch.no_grad():
            learner.target_policy.agent.head.weight.zero_()
            learner.target_policy.agent.head.bias.copy_(torch.tensor([[3.0, 5.0, 7.0]]))
        masked = learner.masked(data)
        y[dead_agents] = learner.targets(masked, learner.policy.unroll(masked))
    # Rows, steps, agents. The second step ends the task: 10 or 1, also for who is dead.
    assert y["no_op"].tolist() == [[[GAMMA * 3, GAMMA * 5], [10, 10]], [[GAMMA * 5, GAMMA * 5], [1, 1]]]
    assert y["zero"][:, 0].tolist() == [[0, GAMMA * 5], [GAMMA * 5, GAMMA * 5]]


@pytest.mark.parametrize("dead_agents", ["zero", "no_op"])
def test_normalised_values_teach_the_same_at_a_death(dead_agents: str):
    """Values of mean 40 and deviation 2: what an absent agent is worth is 0, not the 40 that a network's 0 says."""
    data = episodes(SACRIFICE, copies=1)
    y = []
    for normalize in (False, True):
        learner = make_for_games("none", dead_agents=dead_agents, normalize_values=normalize)
        values = torch.tensor([[42.0, 44.0, 46.0]])
        if learner.value_moments is not None:
            learner.value_moments.count.fill_(100.0)
            learner.value_moments.mean.fill_(40.0)
            learner.value_moments.squares.fill_(400.0)
            values = learner.value_moments.normalize(values)
        with torch.no_grad():
            learner.target_policy.agent.head.weight.zero_()
            learner.target_policy.agent.head.bias.copy_(values)
        masked = learner.masked(data)
        y.append(learner.unscaled(learner.targets(masked, learner.policy.unroll(masked))))
    assert y[0][0, 0, 0] == (0.0 if dead_agents == "zero" else GAMMA * 42.0)
    torch.testing.assert_close(y[1], y[0])


def test_independent_learners_learn_to_die_for_the_team():
    dies, lives = fitted(SACRIFICE, "none", updates=50, dead_agents="no_op")
    assert dies > lives + 4  # on the way from 0 to 9.7 and 1.0


def test_worth_nothing_they_learn_to_live():
    """What 0.1.0 did: the team's reward seemed to end with the agent."""
    assert fitted(SACRIFICE, "none", updates=50, dead_agents="zero") == pytest.approx([0.0, GAMMA * 1], abs=0.3)


@pytest.mark.parametrize(("dead_agents", "returns", "least", "most"), [
    ("zero", "one_step", -0.1, 0.1),  # nobody alive remembers what was done
    ("zero", "peng_lambda", 5.0, 7.0),  # but the return does
    ("no_op", "one_step", 9.0, 10.0),  # and so does the dead agent's memory
])  # fmt: skip
def test_what_only_the_dead_remember(dead_agents: str, returns: str, least: float, most: float):
    first, second = fitted(HIDDEN, "vdn", updates=50, dead_agents=dead_agents, returns=returns)
    assert least < first - second < most


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["algorithm=qmix", "mixer=none"], "algorithm.dead_agents=zero without a mixer"),
        (["algorithm=pqn_qmix", "mixer=none"], "algorithm=pqn_qmix without a mixer"),
        (["algorithm=iql"], ""),
        (["algorithm=pqn_qmix"], ""),
        (["algorithm=coma"], ""),
    ],
)
def test_a_run_says_what_it_teaches_without_a_mixer(typed: list[str], said: str, capsys: pytest.CaptureFixture[str]):
    spec = EnvSpec(2, 3, 4, 5, (4, 4), (3, 3), ("a", "b"), (0, 0))
    _learner(run_config("env=two_step", *typed), spec)
    told = capsys.readouterr().err
    assert told.startswith(said)
    assert ("the team's reward ends when it dies" in told) == bool(said)
