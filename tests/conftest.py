"""Settings of every test."""

import os

import pytest
import torch

from support import commands

# JAX compiles each environment for some steps only: without LLVM's expensive passes in two thirds of the time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Several test processes on few cores: more threads are slower, and sums would depend on their number."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _commands_end():
    """What commands are forked from ends with the tests."""
    yield
    commands.stop_server()
