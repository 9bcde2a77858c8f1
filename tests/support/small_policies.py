"""Small policies of every kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qmix_lightning.agents.base import Agent
from qmix_lightning.agents.feedforward import FeedForwardAgent
from qmix_lightning.agents.inputs import InputBuilder
from qmix_lightning.agents.policy import Policy
from qmix_lightning.agents.recurrent import RecurrentAgent
from qmix_lightning.types import EnvSpec

AGENTS = {"recurrent": RecurrentAgent, "feedforward": FeedForwardAgent}
N, A, OBS, S = 3, 4, 5, 6
SPEC = EnvSpec(
    n_agents=N,
    n_actions=A,
    obs_dim=OBS,
    state_dim=S,
    obs_dims=(OBS,) * N,
    action_counts=(A,) * N,
    agent_names=tuple("abc"),
    group_of_agent=(0, 1, 0),
)
PLAIN_INPUTS = {"use_obs": True, "use_last_action": True, "use_agent_id": True, "normalize_obs": False}
PLAIN_AGENT = {"layer_norm": False, "dueling": False, "orthogonal_init": False}


def build_policy(
    agent: str | type[Agent] = "recurrent",
    *,
    kind: type[Policy] = Policy,
    sizes: tuple[int, int, int] = (N, A, OBS),
    groups: Sequence[int] = SPEC.group_of_agent,
    hidden_dim: int = 8,
    share: bool | str = True,
    inputs: dict[str, bool] | None = None,
    **settings: Any,
) -> Policy:
    """A policy for ``sizes`` (agents, actions, observation), with the weights that torch's generator gives it now."""
    n, actions, obs = sizes
    builder = InputBuilder(n_agents=n, n_actions=actions, obs_dim=obs, **{**PLAIN_INPUTS, **(inputs or {})})
    network = (AGENTS[agent] if isinstance(agent, str) else agent)(
        input_dim=builder.output_dim,
        n_actions=actions,
        group_of_agent=groups,
        hidden_dim=hidden_dim,
        share_parameters=share,
        **{**PLAIN_AGENT, **settings},
    )
    return kind(inputs=builder, agent=network)
