"""An agent that looks at pictures, alone or beside other numbers."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from qmix_lightning.agents.convolutional import ConvolutionalAgent
from qmix_lightning.agents.inputs import InputBuilder
from qmix_lightning.agents.policy import Policy
from qmix_lightning.nn.convolution import AgentConv, strides_for
from qmix_lightning.types import EnvSpec, Picture, TrajectoryBatch

N, A, B, T = 3, 4, 5, 6
LAST = Picture("picture", 2, (5, 4, 2), channels_first=False, scale=0.5)
FIRST = Picture("grid", 42, (1, 6, 5), channels_first=True)
OBS = 74  # two numbers, a picture of 40, a grid of 30, two numbers


def make(pictures=(LAST, FIRST), share=True, memory=True, *, switches=(True, True, True), obs_dim=OBS, **options):
    torch.manual_seed(3)
    use_obs, last, ident = switches
    inputs = InputBuilder(
        n_agents=N, n_actions=A, obs_dim=obs_dim, use_obs=use_obs, use_last_action=last, use_agent_id=ident,
        normalize_obs=options.pop("normalize_obs", False),
    )  # fmt: skip
    given = {"channels": [3, 4], "kernel": 3, "layer_norm": False, "dueling": False, "orthogonal_init": False}
    agent = ConvolutionalAgent(
        input_dim=inputs.output_dim, n_actions=A, group_of_agent=(0, 0, 1), pictures=pictures, inputs=inputs,
        hidden_dim=8, memory=memory, share_parameters=share, **(given | options),
    )  # fmt: skip
    return Policy(inputs=inputs, agent=agent)


def batch(obs_dim=OBS):
    g = torch.Generator().manual_seed(1)
    filled = torch.arange(T) < torch.tensor([6, 4, 6, 1, 3])[:, None]
    alive = torch.rand(B, T + 1, N, generator=g) > 0.3
    alive[:, :, 0] = True
    avail = torch.ones(B, T + 1, N, A, dtype=torch.bool)
    return TrajectoryBatch(
        obs=torch.randn(B, T + 1, N, obs_dim, generator=g),
        state=torch.zeros(B, T + 1, 0),
        avail_actions=avail,
        agent_mask=alive,
        actions=torch.randint(0, A, (B, T, N), generator=g),
        reward=torch.zeros(B, T),
        terminated=torch.zeros(B, T, dtype=torch.bool),
        truncated=torch.zeros(B, T, dtype=torch.bool),
        filled=filled,
    ).mask_invalid()


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("share", [True, False, "group"])
def test_unrolling_equals_acting_step_by_step(share, memory):
    policy, played = make(share=share, memory=memory), batch()
    with torch.no_grad():
        q = policy.unroll(played)
        state, last = policy.initial_state(B), played.last_actions()
        for t in range(T + 1):
            one, state = policy(played.obs[:, t], last[:, t], state)
            state = tuple(s * played.agent_mask[:, t, :, None] for s in state)
            alive = played.agent_mask[:, t]
            torch.testing.assert_close(q[:, t][alive], one[alive], rtol=1e-5, atol=1e-6)


def test_a_convolution_of_several_sets_is_one_for_each_agent():
    torch.manual_seed(0)
    layer = AgentConv([0, 1, 0], 2, 3, 3, 2)
    x = torch.randn(4, 3, 2, 7, 6)
    out = layer(x)
    for agent, which in enumerate([0, 1, 0]):
        alone = F.conv2d(x[:, agent], layer.weight[which], layer.bias[which], stride=2, padding=1)
        torch.testing.assert_close(out[:, agent], alone)
    assert out.shape[-2:] == (layer.size_after(7), layer.size_after(6))


def test_pictures_keep_their_shape():
    """What a picture shows is moved, not changed, by a shift; and channels that stand last are channels."""
    policy = make((Picture("p", 0, (6, 6, 2)),), obs_dim=72, channels=[3], switches=(True, False, False))
    other = make((Picture("p", 0, (2, 6, 6), channels_first=True),), obs_dim=72, channels=[3],
                 switches=(True, False, False))  # fmt: skip
    other.load_state_dict(policy.state_dict())
    picture = torch.randn(1, N, 6, 6, 2)
    last = torch.full((1, N), -1)
    first = picture.movedim(-1, -3)
    q, _ = policy(picture.flatten(2), last, policy.initial_state(1))
    same, _ = other(first.flatten(2), last, other.initial_state(1))
    torch.testing.assert_close(q, same)


def test_every_parameter_learns():
    policy = make(share=False)
    policy.unroll(batch()).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in policy.parameters())


def test_numbers_beside_the_pictures_count():
    policy, played = make(), batch()
    with torch.no_grad():
        before = policy.unroll(played)
        changed = played.obs.clone()
        changed[..., 73] += 1.0
        after = policy.unroll(dataclasses.replace(played, obs=changed))
    alive = played.agent_mask
    assert (before - after)[alive].abs().min(-1).values.max() > 0


def test_small_grids_are_not_reduced_and_large_pictures_are():
    assert strides_for(7, 2) == [1, 1]
    assert strides_for(84, 3) == [4, 2, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pictures": ()}, "hold no picture"),
        ({"switches": (False, True, True)}, "use_obs"),
        ({"normalize_obs": True}, "normalize_obs"),
        ({"channels": []}, "channels"),
        ({"channels": [0]}, "channels"),
        ({"kernel": 2}, "kernel"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        make(**change)


def test_a_specification_with_pictures_survives_a_file():
    spec = EnvSpec(
        n_agents=1, n_actions=2, obs_dim=8, state_dim=0, obs_dims=(8,), action_counts=(2,), agent_names=("a",),
        group_of_agent=(0,), pictures=(Picture("p", 0, (2, 2, 2)),), obs_dtype="uint8", state_is_features=True,
    )  # fmt: skip
    assert EnvSpec.from_dict(spec.to_dict()) == spec
