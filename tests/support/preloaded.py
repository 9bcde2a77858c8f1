"""What collectors and workers import: the process that the tests fork them from has it already."""

import gc
from importlib import import_module

for _name in ("qmix_lightning.envs.pettingzoo", "qmix_lightning.rollout.process_collector", "support.fakes"):
    import_module(_name)
gc.freeze()  # or each of them looks through all of it
