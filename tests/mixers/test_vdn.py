"""The sum of the agents' values, and no mixing at all."""

import pytest
import torch

from qmix_lightning.mixers.none import NoMixer
from qmix_lightning.mixers.vdn import VDNMixer

S = 5


@pytest.mark.parametrize("n", [1, 2, 5])
def test_vdn_is_the_sum(n):
    qs = torch.randn(4, 3, n)
    got = VDNMixer()(qs, torch.full((4, 3, S), float("nan")))  # the state is not used
    assert got.shape == (4, 3)
    torch.testing.assert_close(got, sum(qs[..., i] for i in range(n)))
    assert not list(VDNMixer().parameters())


def test_none_gives_its_inputs():
    qs = torch.randn(4, 3, 2)
    assert torch.equal(NoMixer()(qs, torch.randn(4, 3, S)), qs)
