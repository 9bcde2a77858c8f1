"""Small policies of every kind that act, and what they are shown."""

import copy

import torch

from qmix_lightning.agents.inputs import InputBuilder
from qmix_lightning.agents.policy import Policy
from qmix_lightning.agents.recurrent import RecurrentAgent
from qmix_lightning.types import Observation

CPU = torch.device("cpu")
E, N, A, OBS = 7, 3, 5, 11


def make_policy(agent=RecurrentAgent, switches=(True, True, True), *, share=True, normalize=False, **options):
    torch.manual_seed(1)
    use_obs, use_last_action, use_agent_id = switches
    inputs = InputBuilder(
        n_agents=N,
        n_actions=A,
        obs_dim=OBS,
        use_obs=use_obs,
        use_last_action=use_last_action,
        use_agent_id=use_agent_id,
        normalize_obs=normalize,
    )
    options = {"layer_norm": False, "dueling": False, "orthogonal_init": False} | options
    made = agent(
        input_dim=inputs.output_dim,
        n_actions=A,
        group_of_agent=(0, 0, 1),
        hidden_dim=16,
        share_parameters=share,
        **options,
    )
    with torch.no_grad():
        for parameter in made.parameters():  # layer norms and biases that do something
            parameter.add_(0.1 * torch.randn_like(parameter))
    policy = Policy(inputs=inputs, agent=made)
    if inputs.moments is not None:
        seen = 3.0 + 5.0 * torch.randn(100, OBS)
        inputs.moments.update(seen, torch.ones(100, dtype=torch.bool), lambda x: x)
    return policy


def shown(g: torch.Generator) -> Observation:
    avail = torch.rand(E, N, A, generator=g) > 0.4
    avail[..., 0] = True
    alive = torch.rand(E, N, generator=g) > 0.2
    return Observation(torch.randn(E, N, OBS, generator=g), torch.zeros(E, 0), avail, alive)


def changed(policy, g: torch.Generator):
    """Another policy, as an update makes it."""
    other = copy.deepcopy(policy)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=g)
        if other.inputs.moments is not None:
            other.inputs.moments.mean += 0.3
    return other
