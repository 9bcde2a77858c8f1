"""Every mixer, small, and its formula worked out by loops over its own weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from qmix_lightning.mixers.none import NoMixer
from qmix_lightning.mixers.qatten import QattenMixer
from qmix_lightning.mixers.qmix import QMixer
from qmix_lightning.mixers.qmix_lin import LinearMixer
from qmix_lightning.mixers.qmix_ns import QMixerWithoutState
from qmix_lightning.mixers.qplex import QPLEXMixer
from qmix_lightning.mixers.vdn import VDNMixer
from qmix_lightning.mixers.vdn_s import StateBiasMixer

QPLEX = {"hypernet_dim": 7, "attention_heads": 3, "attention_layers": 2, "attention_dim": 5}


def small_mixer(name: str, *, n: int, a: int, obs: int, state: int, **changed: Any) -> nn.Module:
    """The mixer of this name for ``n`` agents, ``a`` actions and these sizes."""
    positivity = {"positivity": "abs"}
    hypernetworks = {"hypernet_layers": 2, "hypernet_dim": 7}
    factory, settings = {
        "none": (NoMixer, {}),
        "vdn": (VDNMixer, {}),
        "qmix": (
            QMixer,
            {"n_agents": n, "state_dim": state, "embed_dim": 6, "init_scale": 1.0, **hypernetworks, **positivity},
        ),
        "qmix_ns": (QMixerWithoutState, {"n_agents": n, "embed_dim": 6, **positivity}),
        "qmix_lin": (LinearMixer, {"n_agents": n, "state_dim": state, "bias_dim": 6, **hypernetworks, **positivity}),
        "vdn_s": (StateBiasMixer, {"n_agents": n, "state_dim": state, "bias_dim": 6}),
        "qplex": (
            QPLEXMixer,
            {"n_agents": n, "state_dim": state, "n_actions": a, "stop_advantage_gradient": True, **QPLEX},
        ),
        "qatten": (
            QattenMixer,
            {"n_agents": n, "state_dim": state, "obs_dim": obs, "heads": 3, "embed_dim": 4}
            | {"hypernet_dim": 7, "weighted_heads": True},
        ),
    }[name]
    return factory(**(settings | changed))


@dataclass
class Seen:
    """What a mixer sees in one step, as plain numbers."""

    q: list[float]
    state: list[float]
    greedy: list[float]
    actions: list[int]
    obs: list[list[float]]


def linear(layer: nn.Linear, x: list[float]) -> list[float]:
    rows = layer.weight.detach().tolist()
    bias = [0.0] * len(rows) if layer.bias is None else layer.bias.detach().tolist()
    return [sum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in zip(rows, bias, strict=True)]


def network(module: nn.Sequential, x: list[float]) -> list[float]:
    for layer in module:
        x = linear(layer, x) if isinstance(layer, nn.Linear) else [max(0.0, v) for v in x]
    return x


def elu(x: float) -> float:
    return x if x > 0 else math.exp(x) - 1


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


POSITIVE: dict[str, Callable[[float], float]] = {
    "abs": abs,
    "softplus": lambda x: math.log1p(math.exp(x)),
    "square": lambda x: x * x,
    "exp": math.exp,
}


def qmix(mixer: Any, seen: Seen, positivity: str = "abs") -> float:
    """Q_tot = |W2(s)|^T elu(|W1(s)|^T q + b1(s)) + b2(s)."""
    positive, n, m = POSITIVE[positivity], len(seen.q), mixer.embed_dim
    w1, b1 = network(mixer.weight_1, seen.state), linear(mixer.bias_1, seen.state)
    w2, (b2,) = network(mixer.weight_2, seen.state), network(mixer.bias_2, seen.state)
    assert (len(w1), len(b1), len(w2)) == (n * m, m, m)
    hidden = [elu(sum(seen.q[i] * positive(w1[i * m + k]) for i in range(n)) + b1[k]) for k in range(m)]
    return sum(hidden[k] * positive(w2[k]) for k in range(m)) + b2


def qmix_ns(mixer: Any, seen: Seen, positivity: str = "abs") -> float:
    """The same with weights that are parameters."""
    positive = POSITIVE[positivity]
    rows, biases = mixer.hidden.weight.tolist(), mixer.hidden.bias.tolist()
    hidden = [
        elu(sum(positive(w) * q for w, q in zip(row, seen.q, strict=True)) + b)
        for row, b in zip(rows, biases, strict=True)
    ]
    weights, (bias,) = mixer.output.weight[0].tolist(), mixer.output.bias.tolist()
    return sum(positive(w) * h for w, h in zip(weights, hidden, strict=True)) + bias


def qmix_lin(mixer: Any, seen: Seen, positivity: str = "abs") -> float:
    """Q_tot = sum_i |w_i(s)| Q_i + b(s)."""
    weights, (bias,) = network(mixer.weight, seen.state), network(mixer.bias, seen.state)
    return sum(POSITIVE[positivity](w) * q for w, q in zip(weights, seen.q, strict=True)) + bias


def vdn_s(mixer: Any, seen: Seen) -> float:
    """Q_tot = sum_i Q_i + b(s)."""
    return sum(seen.q) + network(mixer.bias, seen.state)[0]


def qplex(mixer: Any, seen: Seen) -> float:
    """V_tot + sum_i lambda_i A_i, the duelling parts put together in their first form."""
    n = len(seen.q)
    weights, biases = network(mixer.weight, seen.state), network(mixer.bias, seen.state)
    heads = mixer.advantage_weights
    one_hot = [float(action == k) for action in seen.actions for k in range(heads.n_actions)]
    keys, phi = network(heads.key, seen.state), network(heads.phi, seen.state)
    psi = network(heads.psi, [*seen.state, *one_hot])
    total = 0.0
    for i in range(n):
        weight = abs(weights[i])
        own_value, own_advantage = weight * seen.greedy[i] + biases[i], weight * (seen.q[i] - seen.greedy[i])
        attention = sum(abs(keys[h]) * sigmoid(phi[h * n + i]) * sigmoid(psi[h * n + i]) for h in range(len(keys)))
        total += own_value + attention * own_advantage
    return total


def qatten(mixer: Any, seen: Seen) -> float:
    """c(s) + sum_h |w_h(s)| sum_i softmax_i(query_h . key_h,i / sqrt(E)) Q_i."""
    heads, size = mixer.shape
    query, keys = network(mixer.query, seen.state), [linear(mixer.key, obs) for obs in seen.obs]
    weights = [abs(w) for w in network(mixer.head_weight, seen.state)] if mixer.head_weight else [1.0] * heads
    total = network(mixer.bias, seen.state)[0]
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        scores = [sum(x * y for x, y in zip(query[part], key[part], strict=True)) / math.sqrt(size) for key in keys]
        shares = [math.exp(score) for score in scores]
        total += weights[h] * sum(s / sum(shares) * q for s, q in zip(shares, seen.q, strict=True))
    return total


FORMULAS: dict[str, Callable[..., float]] = {
    "vdn": lambda mixer, seen: sum(seen.q),
    "qmix": qmix,
    "qmix_ns": qmix_ns,
    "qmix_lin": qmix_lin,
    "vdn_s": vdn_s,
    "qplex": qplex,
    "qatten": qatten,
}


def seen_at(q: Tensor, state: Tensor, greedy: Tensor, actions: Tensor, obs: Tensor) -> Seen:
    """One step's tensors as plain numbers."""
    return Seen(*(x.detach().tolist() for x in (q, state, greedy, actions, obs)))
