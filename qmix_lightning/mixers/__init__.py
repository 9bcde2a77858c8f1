"""Define the mixers: modules that make the team's value of the agents' values.

A mixer is ``(agent_qs [B, T, N], state [B, T, S]) -> q_tot [B, T]``. Add one with
``MIXERS.register("name", "package.module:Class")`` or an entry point in the group ``qmix_lightning.mixers``.
"""

from qmix_lightning.registry import Registry

MIXERS = Registry(
    "mixer",
    "qmix_lightning.mixers",
    {
        "none": "qmix_lightning.mixers.none:NoMixer",
        "vdn": "qmix_lightning.mixers.vdn:VDNMixer",
        "qmix": "qmix_lightning.mixers.qmix:QMixer",
        "qmix_ns": "qmix_lightning.mixers.qmix_ns:QMixerWithoutState",
        "qmix_lin": "qmix_lightning.mixers.qmix_lin:LinearMixer",
        "vdn_s": "qmix_lightning.mixers.vdn_s:StateBiasMixer",
        "qplex": "qmix_lightning.mixers.qplex:QPLEXMixer",
        "qatten": "qmix_lightning.mixers.qatten:QattenMixer",
    },
)

__all__ = ["MIXERS"]
