"""Settings of every test."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Several test processes on few cores: more threads are slower, and sums would depend on their number."""
    torch.set_num_threads(1)
