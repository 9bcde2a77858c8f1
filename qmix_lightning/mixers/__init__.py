"""Define the mixers: modules that make the team's value of the agents' values.

A mixer is ``(agent_qs [B, T, N], state [B, T, S]) -> q_tot [B, T]``. Add one with
``MIXERS.register("name", "package.module:Class")`` or an entry point in the group ``qmix_lightning.mixers``.
"""

from qmix_lightning.registry import Registry

MIXERS = Registry("mixer", "qmix_lightning.mixers")

__all__ = ["MIXERS"]
