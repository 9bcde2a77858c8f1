"""Make the spec of the environment that a benchmark's random episodes are of."""

from __future__ import annotations

from qmix_lightning.types import EnvSpec

__all__ = ["spec_of"]


def spec_of(*, agents: int, actions: int, obs: int, state: int, limit: int | None = None) -> EnvSpec:
    """Return the spec of a team of ``agents`` that are all alike."""
    return EnvSpec(
        n_agents=agents,
        n_actions=actions,
        obs_dim=obs,
        state_dim=state,
        obs_dims=(obs,) * agents,
        action_counts=(actions,) * agents,
        agent_names=tuple(f"agent_{i}" for i in range(agents)),
        group_of_agent=(0,) * agents,
        episode_limit=limit,
    )
