"""Layers with parameters for each agent against torch's own."""

import pytest
import torch

from qmix_lightning.nn.heads import DuelingHead
from qmix_lightning.nn.layers import AgentLayerNorm, parameter_sets
from support.small_agents import SHARING
from support.small_policies import A, N


@pytest.mark.parametrize("share", SHARING)
def test_layer_norm_is_torchs_for_each_agent(share):
    sets = parameter_sets(share, [0, 1, 0])
    norm = AgentLayerNorm(sets, 5).double()
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn_like(parameter))
    x = torch.randn(2, 3, N, 5, dtype=torch.float64)
    for n in range(N):
        own = torch.nn.LayerNorm(5).double()
        own.load_state_dict({"weight": norm.weight[sets[n]], "bias": norm.bias[sets[n]]})
        torch.testing.assert_close(norm(x)[:, :, n], own(x[:, :, n]))


@pytest.mark.parametrize("share", SHARING)
def test_a_duelling_head_is_value_plus_centred_advantage(share):
    sets = parameter_sets(share, [0, 1, 0])
    head = DuelingHead(sets, 6, A).double()
    x = torch.randn(5, N, 6, dtype=torch.float64)
    for n in range(N):
        value = x[:, n] @ head.value.weight[sets[n]].T + head.value.bias[sets[n]]
        advantage = x[:, n] @ head.advantage.weight[sets[n]].T + head.advantage.bias[sets[n]]
        torch.testing.assert_close(head(x)[:, n], value + advantage - advantage.mean(1, keepdim=True))
    torch.testing.assert_close(head(x).mean(-1), head.value(x).squeeze(-1))
