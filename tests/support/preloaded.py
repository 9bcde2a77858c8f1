"""What collectors and workers import: the process that the tests fork them from has it already."""

import gc

import qmix_lightning.envs.pettingzoo
import qmix_lightning.rollout.process_collector  # noqa: F401
import support.fakes  # noqa: F401

gc.freeze()  # or each of them looks through all of it
