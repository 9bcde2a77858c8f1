"""Prints how many bytes this process holds after some updates, and after as many more again and again."""

import resource

import torch

from qmix_lightning.runtime.resources import keep_freed_memory
from support.batches import random_batch
from support.learners import make_learner


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


torch.set_num_threads(1)
keep_freed_memory()
learner = make_learner("qmix", dtype=torch.float32)
parameters = [p for p in learner.parameters() if p.requires_grad]
optimizer = torch.optim.Adam(parameters, fused=True)
# The longest comes first: whatever comes later fits into the memory of it.
batches = [random_batch(i, [60 - i, *[20 + (7 * k + i) % 40 for k in range(31)]]) for i in range(8)]
for update in range(80):
    batch = batches[update % len(batches)].map(torch.clone)
    learner.observe(batch)
    terms = learner.loss(batch)
    optimizer.zero_grad()
    (terms.total / terms.count).backward()
    torch.nn.utils.clip_grad_norm_(parameters, 10.0)
    optimizer.step()
    learner.after_update(episodes=update, updates=update)
    if update % 20 == 19:
        print(resident())
