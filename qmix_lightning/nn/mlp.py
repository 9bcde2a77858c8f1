"""Make plain feed-forward networks, and compute several that read the same inputs with one product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["hypernetwork"]


def hypernetwork(in_features: int, out_features: int, layers: int, hidden_dim: int) -> nn.Module:
    """Return a network that produces another's weights: ``layers`` linear layers with ReLU between them."""
    if layers < 1:
        raise ValueError(f"a hypernetwork needs at least one layer, not {layers}")
    if layers > 1 and hidden_dim < 1:
        raise ValueError(f"hypernet_dim must be at least 1, not {hidden_dim}")
    widths = [in_features, *([hidden_dim] * (layers - 1)), out_features]
    modules: list[nn.Module] = []
    for i in range(layers):
        modules += [nn.Linear(widths[i], widths[i + 1]), nn.ReLU()]
    return nn.Sequential(*modules[:-1])


def side_by_side(networks: Sequence[nn.Module], inputs: Tensor) -> list[Tensor]:
    """Apply each of ``networks`` (linear layers, or sequences that begin with one) to the same ``inputs``.

    Their first layers are one product: four narrow ones, all reading the state, cost more than a wide one.
    """
    layers = [list(net) if isinstance(net, nn.Sequential) else [net] for net in networks]
    firsts = [cast(nn.Linear, net[0]) for net in layers]
    joined = F.linear(inputs, torch.cat([f.weight for f in firsts]), torch.cat([f.bias for f in firsts]))
    outputs = list(joined.split([f.out_features for f in firsts], dim=-1))
    for i, net in enumerate(layers):
        for layer in net[1:]:
            outputs[i] = layer(outputs[i])
    return outputs
