"""Define learning rules: pure functions for returns and losses, and learners that join networks and losses.

A learner is a module with ``policy`` (the rollout policy), ``loss(batch) -> LossTerms`` and ``after_update(...)``.
Add one with ``ALGORITHMS.register("name", "package.module:Class")`` or an entry point in the group
``qmix_lightning.algorithms``.
"""

from qmix_lightning.registry import Registry

ALGORITHMS = Registry(
    "algorithm",
    "qmix_lightning.algorithms",
    {
        "iql": "qmix_lightning.algorithms.q_learning:QLearning",
        "vdn": "qmix_lightning.algorithms.q_learning:QLearning",
        "qmix": "qmix_lightning.algorithms.q_learning:QLearning",
        "qmix_ns": "qmix_lightning.algorithms.q_learning:QLearning",
        "qmix_lin": "qmix_lightning.algorithms.q_learning:QLearning",
        "vdn_s": "qmix_lightning.algorithms.q_learning:QLearning",
        "qplex": "qmix_lightning.algorithms.q_learning:QLearning",
        "qatten": "qmix_lightning.algorithms.q_learning:QLearning",
        "qtran_base": "qmix_lightning.algorithms.qtran:QTranBase",
        "qtran_alt": "qmix_lightning.algorithms.qtran:QTranAlt",
        "cw_qmix": "qmix_lightning.algorithms.weighted_qmix:CWQMIX",
        "ow_qmix": "qmix_lightning.algorithms.weighted_qmix:OWQMIX",
        "coma": "qmix_lightning.algorithms.coma:COMA",
        "ippo": "qmix_lightning.algorithms.ppo:IPPO",
        "mappo": "qmix_lightning.algorithms.ppo:MAPPO",
        "pqn_vdn": "qmix_lightning.algorithms.pqn:PQN",
        "pqn_qmix": "qmix_lightning.algorithms.pqn:PQN",
    },
)

__all__ = ["ALGORITHMS"]
