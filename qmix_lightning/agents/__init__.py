"""Define the agent networks: what each agent computes from what it alone has seen.

An agent is ``(inputs, state) -> (q, state)`` with ``initial_state(B)``; ``unroll`` runs it along time. Add one with
``AGENTS.register("name", "package.module:Class")`` or an entry point in the group ``qmix_lightning.agents``.
"""

from qmix_lightning.registry import Registry

AGENTS = Registry(
    "agent",
    "qmix_lightning.agents",
    {
        "recurrent": "qmix_lightning.agents.recurrent:RecurrentAgent",
        "feedforward": "qmix_lightning.agents.feedforward:FeedForwardAgent",
        "entity_attention": "qmix_lightning.agents.entity_attention:EntityAttentionAgent",
        "convolutional": "qmix_lightning.agents.convolutional:ConvolutionalAgent",
    },
)

__all__ = ["AGENTS"]
