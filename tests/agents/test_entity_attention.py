"""The entity-attention agent: what stands in which slot makes no difference, and what is out of sight none at all."""

import json

import pytest
import torch

from qmix_lightning.agents.base import Agent
from qmix_lightning.agents.entity_attention import EntityAttentionAgent
from qmix_lightning.agents.inputs import InputBuilder
from qmix_lightning.agents.policy import Policy
from qmix_lightning.build import _learner
from qmix_lightning.checkpoint.files import read_checkpoint
from qmix_lightning.errors import ConfigurationError
from qmix_lightning.nn.packing import Packing
from qmix_lightning.types import EntityBlock, EnvSpec, TrajectoryBatch
from support import inprocess
from support.cases import every_value, pairwise
from support.compositions import run_config
from support.small_policies import PLAIN_AGENT, PLAIN_INPUTS

N, A, OBS = 3, 6, 12
# 2 own features, 3 enemies of 2 numbers whom actions 3 to 5 are directed at, 2 own, 2 items of 1 number.
BLOCKS = (EntityBlock("enemies", 2, 3, 2, first_action=3), EntityBlock("items", 10, 2, 1, absent=(-1.0,)))
SHARING = [True, False, "group"]
ALL_ON = {"layer_norm": True, "dueling": True, "orthogonal_init": True}


def make(blocks=BLOCKS, *, share=True, memory=True, inputs=None, seed=0, **changed) -> tuple[InputBuilder, Agent]:
    torch.manual_seed(seed)
    builder = InputBuilder(n_agents=N, n_actions=A, obs_dim=OBS, **{**PLAIN_INPUTS, **(inputs or {})})
    settings = {"hidden_dim": 8, "embed_dim": 8, "attention_heads": 2, **PLAIN_AGENT, **changed}
    agent = EntityAttentionAgent(
        input_dim=builder.output_dim,
        n_actions=A,
        group_of_agent=[0, 1, 0],
        obs_entities=blocks,
        inputs=builder,
        memory=memory,
        share_parameters=share,
        **settings,
    )
    return builder, agent.double()


def observations(*leading: int, seed: int = 1) -> torch.Tensor:
    """Some enemies are out of sight (zeros), some items too (-1)."""
    g = torch.Generator().manual_seed(seed)
    obs = torch.randn(*leading, N, OBS, generator=g, dtype=torch.float64)
    for block in BLOCKS:
        gone = torch.rand(*leading, N, block.count, generator=g) < 0.3
        part = obs[..., block.start : block.end].unflatten(-1, (block.count, block.size))
        absent = torch.tensor(block.absent or (0.0,) * block.size, dtype=torch.float64)
        obs[..., block.start : block.end] = torch.where(gone[..., None], absent, part).flatten(-2)
    return obs


def values(builder: InputBuilder, agent: Agent, obs: torch.Tensor) -> torch.Tensor:
    """``q [B, T, N, A]`` of a sequence without deaths and first actions."""
    alive = torch.ones(obs.shape[:-1], dtype=torch.bool)
    q, _ = agent.unroll(builder(obs, alive.long()), agent.initial_state(len(obs)), alive)
    return q


def exchanged(obs: torch.Tensor, block: EntityBlock, order: list[int]) -> torch.Tensor:
    obs = obs.clone()
    part = obs[..., block.start : block.end].unflatten(-1, (block.count, block.size))
    obs[..., block.start : block.end] = part[..., order, :].flatten(-2)
    return obs


@pytest.mark.parametrize(("memory", "share", "extras"), pairwise([True, False], SHARING, [PLAIN_AGENT, ALL_ON]))
@torch.no_grad()
def test_the_order_of_entities_makes_no_difference(memory, share, extras):
    builder, agent = make(memory=memory, share=share, **extras)
    obs = observations(4, 5)
    q = values(builder, agent, obs)
    assert q.shape == (4, 5, N, A)
    torch.testing.assert_close(values(builder, agent, exchanged(obs, BLOCKS[1], [1, 0])), q)
    # Values of actions at enemies move along with them, the others stay.
    order = [2, 0, 1]
    want = q[..., [0, 1, 2, *(3 + index for index in order)]]
    torch.testing.assert_close(values(builder, agent, exchanged(obs, BLOCKS[0], order)), want)
    assert not torch.allclose(want, q)
    # Own features are not entities.
    moved = obs.clone()
    moved[..., [0, 1]] = obs[..., [1, 0]]
    assert not torch.allclose(values(builder, agent, moved), q)


@pytest.mark.parametrize("share", SHARING)
def test_the_attention_is_its_definition(share):
    """One cell recomputed by loops over heads and entities."""
    _, agent = make(share=share)
    encoder = agent.encoder
    x = torch.cat([observations(1)[0], torch.rand(N, A + N, dtype=torch.float64)], -1)  # [N, I]
    out = encoder(x).summary

    def layer(linear, i, vector):
        index = linear.sets[i] if linear.n_sets > 1 else 0
        return linear.weight[index] @ vector + linear.bias[index]

    for i in range(N):
        own = torch.relu(layer(encoder.embed_own, i, torch.cat([x[i, 0:2], x[i, 8:10], x[i, 12:]])))
        tokens = [own]
        for block, embed in zip(BLOCKS, encoder.embed, strict=True):
            for k in range(block.count):
                features = x[i, block.start + k * block.size : block.start + (k + 1) * block.size]
                if features.tolist() not in ([0.0] * block.size, list(block.absent)):
                    tokens.append(torch.relu(layer(embed, i, features)))
        gathered = []
        for head in (slice(0, 4), slice(4, 8)):
            scores = [layer(encoder.query, i, own)[head] @ layer(encoder.key, i, t)[head] / 2.0 for t in tokens]
            weights = torch.stack(scores).softmax(0)
            gathered.append(sum(w * layer(encoder.value, i, t)[head] for w, t in zip(weights, tokens, strict=True)))
        torch.testing.assert_close(out[i], torch.cat([own, *gathered]))


def test_nothing_in_sight():
    """Values and gradients are finite, and actions at nobody share one value."""
    builder, agent = make()
    obs = torch.zeros(2, 3, N, OBS, dtype=torch.float64)
    obs[..., 10:] = -1.0
    q = values(builder, agent, obs)
    assert q.isfinite().all()
    torch.testing.assert_close(q[..., 3:], q[..., 3:4].expand(-1, -1, -1, 3))
    q.sum().backward()
    for name, parameter in agent.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    # Where nobody is seen, what stands for absence is not looked at: the zeros of a dead agent give the same.
    with torch.no_grad():
        torch.testing.assert_close(values(builder, agent, torch.zeros_like(obs)), q)


@pytest.mark.parametrize(("memory", "share", "blocks"), pairwise([True, False], SHARING, [BLOCKS, BLOCKS[1:]]))
def test_every_parameter_gets_a_gradient(memory, share, blocks):
    builder, agent = make(blocks, memory=memory, share=share, **ALL_ON)
    values(builder, agent, observations(3, 4)).square().sum().backward()
    without = [name for name, p in agent.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    assert without == []


@pytest.mark.parametrize(("memory", "share"), every_value([True, False], SHARING))
@torch.no_grad()
def test_packed_and_step_by_step_are_the_same(memory, share):
    builder, agent = make(memory=memory, share=share)
    obs = observations(5, 6)
    alive = torch.rand(5, 6, N, generator=torch.Generator().manual_seed(3)) > 0.3
    alive[:, 0] = True
    actions = torch.randint(A, (5, 5, N), generator=torch.Generator().manual_seed(4))
    none = torch.zeros(5, 5, dtype=torch.bool)
    batch = TrajectoryBatch(
        obs=obs,
        state=obs.new_zeros(5, 6, 1),
        avail_actions=torch.ones(5, 6, N, A, dtype=torch.bool),
        agent_mask=alive,
        actions=actions,
        reward=obs.new_zeros(5, 5),
        terminated=none,
        truncated=none,
        filled=~none,
    )
    policy = Policy(inputs=builder, agent=agent)
    state = policy.initial_state(5)
    slow, _ = Agent.unroll_body(agent, builder(obs, batch.last_actions()), state, alive)
    packing = Packing.of(alive, agent.columns)
    packed = packing.scatter(agent.unroll_packed(builder.packed(batch, packing), state, packing))
    torch.testing.assert_close(packed[alive], slow[alive])
    torch.testing.assert_close(policy.unroll(batch)[alive], agent.head(slow)[alive])


@pytest.mark.parametrize("share", SHARING)
def test_sharing_of_parameters(share):
    """A change in the first set of parameters reaches the agents that use it and no others."""
    builder, agent = make(share=share)
    obs = observations(1, 2)
    before = values(builder, agent, obs)
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter[0] += 0.1
    changed = (values(builder, agent, obs) != before).flatten(-1).any(-1).any(1)[0].tolist()
    assert changed == {True: [True, True, True], False: [True, False, False], "group": [True, False, True]}[share]


def test_orthogonal_init():
    _, agent = make(orthogonal_init=True)
    for name, gain in {"query": 1.0, "key": 1.0, "value": 1.0, "embed_own": 2**0.5}.items():
        singular = torch.linalg.svdvals(getattr(agent.encoder, name).weight[0])
        torch.testing.assert_close(singular, torch.full_like(singular, gain), rtol=1e-5, atol=1e-5)
    singular = torch.linalg.svdvals(agent.head.base.weight[0])
    torch.testing.assert_close(singular, torch.ones_like(singular), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"blocks": ()}, "does not say which parts of an observation are entities; use agent=recurrent or agent=feed"),
        ({"inputs": {"use_obs": False}}, "it looks at entities, so use_obs must be true"),
        ({"inputs": {"normalize_obs": True}}, "normalize_obs must be false"),
        ({"attention_heads": 3}, r"embed_dim \(8\) must divide by attention_heads \(3\)"),
        (
            {
                "blocks": (EntityBlock("all", 0, OBS, 1),),
                "inputs": {"use_agent_id": False, "use_last_action": False},
            },
            "nothing is left for the agent's own features",
        ),
        (
            {"blocks": (EntityBlock("a", 0, 2, 1, first_action=1), EntityBlock("b", 4, 2, 1, first_action=2))},
            "an action is directed at entities of two types",
        ),
    ],
)
def test_what_it_refuses(changed, message):
    with pytest.raises(ValueError, match=message):
        make(**changed)


# The layout that an environment declares ------------------------------------------------------------------------------


def spec(**changed) -> EnvSpec:
    given = {"n_agents": 1, "n_actions": 4, "obs_dim": 9, "state_dim": 1, "obs_dims": (9,), "action_counts": (4,)}
    return EnvSpec(**{**given, "agent_names": ("a",), "group_of_agent": (0,), **changed})


def test_a_layout_goes_through_plain_containers():
    declared = spec(obs_entities=(EntityBlock("x", 1, 2, 3, absent=(-1, -1, 0), first_action=2),))
    plain = declared.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert EnvSpec.from_dict(plain) == declared
    old = {key: value for key, value in plain.items() if key != "obs_entities"}
    assert EnvSpec.from_dict(old).obs_entities == ()  # from before there were any


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([EntityBlock("x", 4, 2, 3)], "entities 'x' are at 4 to 10 of 9 numbers"),
        ([EntityBlock("x", 0, 2, 3), EntityBlock("y", 5, 1, 1)], "'y' are at 5 to 6 of 9 numbers, 6 of which belong"),
        ([EntityBlock("x", 0, 3, 3, first_action=2)], "actions at entities 'x' are 2 to 4, but there are 4"),
        ([EntityBlock("x", 0, 3, 3, first_action=0)], "actions at entities 'x' are 0 to 2, but there are 4"),
    ],
)
def test_a_layout_that_does_not_fit(blocks, message):
    with pytest.raises(ValueError, match=message):
        spec(obs_entities=tuple(blocks))


@pytest.mark.parametrize("wrong", [{"count": 0}, {"size": 0}, {"start": -1}, {"absent": (1.0,)}])
def test_a_block_that_makes_no_sense(wrong):
    with pytest.raises(ValueError, match="entities 'x'"):
        EntityBlock(**{"name": "x", "start": 0, "count": 1, "size": 2, **wrong})


# Through the command line ---------------------------------------------------------------------------------------------

LBF = [
    "env=lbf",
    "env.task=5x5-2p-2f",
    "agent=entity_attention",
    "agent.embed_dim=8",
    *inprocess.TINY,
    "replay.batch_size=1",
    "eval_episodes=1",
]


def test_it_trains_and_is_evaluated(tmp_path):
    pytest.importorskip("lbforaging")
    inprocess.succeed([*LBF, "agent.share_parameters=group", "mixer.embed_dim=4", f"run_dir={tmp_path}/run"])
    saved = read_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt")
    assert [block["name"] for block in saved["spec"]["obs_entities"]] == ["food", "players"]
    result = inprocess.succeed(
        [f"ckpt_path={tmp_path}/run/checkpoints/best.ckpt", "episodes=1", "output=-"], "evaluate"
    )
    assert json.loads(result.out)["episodes"] == 1


def test_an_environment_without_entities_is_named(tmp_path):
    typed = ["env=two_step", "agent=entity_attention", *inprocess.TINY, f"run_dir={tmp_path}/run"]
    told = ("environment 'two_step' declares none", "use agent=recurrent or agent=feedforward")
    inprocess.refused(typed, *told)


def built(absent: tuple[float, ...], agent: str, dtype: str) -> None:
    block = EntityBlock("food", start=0, count=2, size=2, absent=absent)
    shown = EnvSpec(2, 3, 5, 4, (5, 5), (3, 3), ("a", "b"), (0, 0), obs_entities=(block,))
    _learner(run_config("env=two_step", f"agent={agent}", f"replay.dtype={dtype}"), shown)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_replay_that_would_make_the_absent_visible_is_refused(dtype: str):
    """They are told by the numbers that stand for them, which a narrow replay may round."""
    line = rf"replay.dtype={dtype} rounds \[0.1, 0.3\], .* 'food' are absent, .*: set replay.dtype=float32"
    with pytest.raises(ConfigurationError, match=line):
        built((0.1, 0.3), "entity_attention", dtype)


@pytest.mark.parametrize(
    ("absent", "agent", "dtype"),
    [
        ((0.1, 0.3), "entity_attention", "float32"),
        ((0.1, 0.3), "recurrent", "float16"),
        ((-1.0, 0.5), "entity_attention", "float16"),
        ((), "entity_attention", "float16"),
    ],
)
def test_a_replay_that_leaves_the_absent_as_they_are_is_taken(absent: tuple[float, ...], agent: str, dtype: str):
    built(absent, agent, dtype)
