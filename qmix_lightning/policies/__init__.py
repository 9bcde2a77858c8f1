"""Open trained policies, wherever they are kept, act with them, and give them to others.

A *reference* names one: a policy folder, a checkpoint, a run folder, ``last`` or ``best`` of a run, a policy of the zoo
or of the Hugging Face hub. :func:`open_policy` reads all of them; Lightning is not imported for it.
"""

from qmix_lightning.policies.opener import open_network, open_policy
from qmix_lightning.policies.stored import StoredPolicy
from qmix_lightning.policies.team import Team

__all__ = ["StoredPolicy", "Team", "open_network", "open_policy"]
