"""Define learning rules: pure functions for returns and losses, and learners that join networks and losses.

A learner is a module with ``policy`` (the rollout policy), ``loss(batch) -> LossTerms`` and ``after_update(...)``.
Add one with ``ALGORITHMS.register("name", "package.module:Class")`` or an entry point in the group
``qmix_lightning.algorithms``.
"""

from qmix_lightning.registry import Registry

ALGORITHMS = Registry("algorithm", "qmix_lightning.algorithms")

__all__ = ["ALGORITHMS"]
