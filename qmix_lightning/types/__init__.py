"""Define the data that every part of the package agrees on: axes, masks and the two containers.

Axis letters, always in this order:

====== =====================================================================
``B``  rows of a batch; a row never crosses an episode
``T``  joint steps of a row; fields that also hold the successor have ``T+1``
``E``  environments that step together (the collector's side of ``B``)
``N``  agents (padded slots: a slot never changes its owner)
``A``  actions, padded to the largest agent's count
``O``  observation, padded to the largest agent's size
``S``  global state
====== =====================================================================

Masks:

* ``filled [B, T]``: the step happened. Everything outside it is padding and may hold anything.
* ``agent_mask [B, T+1, N]``: the agent is alive and present. A dead agent keeps its slot: zero
  observation, only the no-op (action 0) legal.
* ``avail_actions [B, T+1, N, A]``: legal actions; padded actions are illegal.
* ``terminated`` ends the task: nothing follows, nothing is bootstrapped. ``truncated`` ends the
  recording only (a time limit that is not part of the task): the value of the true last
  observation is bootstrapped.
"""

from qmix_lightning.types.env_spec import EntityBlock, EnvSpec, Picture
from qmix_lightning.types.trajectories import (
    NO_OP,
    Episode,
    EpisodeStats,
    HostMasks,
    Observation,
    TrainBatch,
    TrajectoryBatch,
    Transition,
)

__all__ = [
    "NO_OP",
    "EntityBlock",
    "EnvSpec",
    "Episode",
    "EpisodeStats",
    "HostMasks",
    "Observation",
    "Picture",
    "TrainBatch",
    "TrajectoryBatch",
    "Transition",
]
