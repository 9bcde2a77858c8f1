"""An episode of a battle-like game, recorded with the pictures that a page holds."""

from __future__ import annotations

from qmix_lightning.components import env_maker
from qmix_lightning.rendering.episode import RecordedEpisode
from qmix_lightning.rendering.page import PageFrames
from qmix_lightning.rendering.recorder import record_episode
from qmix_lightning.rendering.team_values import mixing_of
from support.policies import stored_policy


def recording(*overrides: str, seed: int = 5) -> tuple[RecordedEpisode, PageFrames]:
    """An episode of ``Skirmish``, in which agents die, with a policy whose weights are random."""
    stored = stored_policy(*overrides)
    frames = PageFrames()
    episode = record_episode(
        env_maker(stored.env)(1),
        stored.build().eval(),
        seed=seed,
        gamma=0.9,
        team_values=mixing_of(stored.build_learner()),
        on_frame=frames,
    )
    return episode, frames
