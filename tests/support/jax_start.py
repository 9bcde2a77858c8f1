"""Run by a test of SMAX: starts JAX as the environments do, and looks at its threads and the process's environment."""

import os
from pathlib import Path

import jax

from qmix_lightning.envs.jax_vector import start_jax

before = dict(os.environ)
start_jax()
assert jax.config.read("jax_cpu_enable_async_dispatch") is True
jax.devices()
assert dict(os.environ) == before
threads = [task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
assert threads.count("tf_XLAEigen") <= 1, threads
