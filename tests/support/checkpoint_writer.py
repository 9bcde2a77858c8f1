"""Writes checkpoints to ``RUN/checkpoints/last.ckpt`` until it is killed, and prints the number of each."""

import itertools
import os
import sys

import torch

from qmix_lightning.checkpoint.files import write_checkpoint

torch.set_num_threads(1)
for step in itertools.count():
    weights = torch.full((200_000,), float(step))
    payload = {"state_dict": {"w": weights}, "config": {}, "spec": {}, "env_steps": step, "global_step": step}
    write_checkpoint(payload, f"{sys.argv[1]}/checkpoints/last.ckpt")
    os.write(1, b"%d\n" % step)
