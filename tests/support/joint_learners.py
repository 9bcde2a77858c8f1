"""Small learners with a free joint value (QTRAN, weighted QMIX), and what they compute worked out by loops."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import torch

from qmix_lightning.algorithms.qtran import QTranAlt, QTranBase
from qmix_lightning.algorithms.value_learner import ValueLearner, ValueSettings
from qmix_lightning.algorithms.weighted_qmix import CWQMIX, OWQMIX
from support.batches import VALUES, value_settings
from support.small_mixers import small_mixer
from support.small_policies import OBS, SPEC, A, N, S, build_policy

QTRAN = {"lambda_opt": 0.7, "lambda_nopt": 1.3, "joint_hidden_dim": 6, "joint_state": True}
WEIGHTED = {"alpha": 0.3, "central_hidden_dim": 6, "central_hidden_layers": 2}
LEARNERS = {
    "qtran_base": (QTranBase, "vdn", QTRAN),
    "qtran_alt": (QTranAlt, "vdn", QTRAN),
    "cw_qmix": (CWQMIX, "qmix", WEIGHTED),
    "ow_qmix": (OWQMIX, "qmix", WEIGHTED),
}
RETURNS = ("one_step", "n_step", "peng_lambda", "td_lambda")


def make(
    name: str,
    agent: str = "recurrent",
    *,
    seed: int = 0,
    mixer: str | None = None,
    dtype: torch.dtype = torch.float64,
    **changed: Any,
) -> Any:
    """A learner whose targets differ from its online networks."""
    torch.manual_seed(seed)
    kind, own_mixer, settings = LEARNERS[name]
    values = {key: changed.pop(key) for key in list(changed) if key in VALUES}
    make_policy = partial(build_policy, agent, share="group")
    given: dict[str, Any] = {"policy": make_policy(), "spec": SPEC, "settings": value_settings(**values)}
    if name.endswith("qmix"):
        given["make_policy"] = make_policy
    given["mixer"] = small_mixer(mixer or own_mixer, n=N, a=A, obs=OBS, state=S)
    learner: ValueLearner = kind(**given, **(settings | changed)).to(dtype)
    with torch.no_grad():
        for _, target in learner.target_pairs():
            for p in target.parameters():
                p.add_(0.2 * torch.randn_like(p))
    return learner


def plain_targets(
    settings: ValueSettings, rewards: list[float], terminated: bool, greedy: list[float], taken: list[float]
) -> list[float]:
    """The targets of one episode, each as a sum of rewards and of values on the way, without a recursion.

    Args:
        settings: of the learner.
        rewards: of each step.
        terminated: at the last step; otherwise it was cut there.
        greedy: value of the greedy actions after each step.
        taken: value of the actions taken after each step.
    """
    last, gamma = len(rewards) - 1, settings.gamma
    values = list(greedy)
    if settings.returns == "td_lambda":
        values[:last] = taken[:last]

    def n_step(t: int, n: int) -> float:
        end = min(t + n - 1, last)
        total = sum(gamma ** (k - t) * rewards[k] for k in range(t, end + 1))
        return total + (0.0 if end == last and terminated else gamma ** (end + 1 - t) * values[end])

    if settings.returns in ("one_step", "n_step"):
        steps = settings.n_steps if settings.returns == "n_step" else 1
        return [n_step(t, steps) for t in range(last + 1)]
    lam, found = settings.td_lambda, []
    for t in range(last + 1):
        mixed = sum((1 - lam) * lam ** (n - 1) * n_step(t, n) for n in range(1, last - t + 1))
        found.append(mixed + lam ** (last - t) * n_step(t, last - t + 1))
    return found


def greedy_of(q: list[list[float]], legal: list[list[bool]], alive: list[bool]) -> list[int]:
    """Each agent's best legal action; the dead do nothing."""
    return [max((a for a in range(A) if legal[i][a]), key=lambda a, i=i: q[i][a]) if alive[i] else 0 for i in range(N)]


def joint_actions() -> list[tuple[int, ...]]:
    return list(itertools.product(range(A), repeat=N))
