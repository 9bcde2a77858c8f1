"""The learned team values of a small game beside the exact ones."""

from __future__ import annotations

import copy
import itertools
import json
import logging
from pathlib import Path
from typing import Any, cast

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from qmix_lightning.agents.policy import Policy
from qmix_lightning.environment import TabularGame, VectorEnv
from qmix_lightning.rollout import Actor, evaluate_episodes
from qmix_lightning.summary import write_json

__all__ = ["QTableReport", "learned_tables"]

_log = logging.getLogger(__name__)


@torch.no_grad()
def learned_tables(policy: Policy, mixer: nn.Module, env: VectorEnv, histories: dict[str, Any]) -> dict[str, Any]:
    """``Q_tot`` of every joint action in every state of a game.

    A recurrent agent's values depend on how the state was reached, so they are averaged over the given histories.

    Args:
        policy: the agents.
        mixer: ``(agent_qs [B, T, N], state [B, T, S]) -> [B, T]``.
        env: one environment of the game.
        histories: state label to the joint-action sequences that lead there.

    Returns:
        State label to nested lists, one level for each agent's action.
    """
    one = torch.ones(1, dtype=torch.bool)
    counts = env.spec.action_counts
    tables: dict[str, Any] = {}
    for label, sequences in histories.items():
        values: list[Tensor] = []
        for sequence in sequences:
            observation = env.reset(one, torch.zeros(1, dtype=torch.int64))
            memory = policy.initial_state(1)
            last = torch.full((1, env.spec.n_agents), -1)
            for joint_action in sequence:
                _, memory = policy(observation.obs, last, memory)
                last = torch.tensor([joint_action])
                observation = env.step(last, one).next
            q, _ = policy(observation.obs, last, memory)  # [1, N, A]
            joint = torch.tensor(list(itertools.product(*map(range, counts))))  # [J, N]
            taken = q[0].gather(1, joint.T).T  # [J, N]
            state = observation.state.expand(len(joint), -1)
            values.append(mixer(taken[None], state[None])[0].reshape(counts))
        tables[label] = torch.stack(values).mean(0).tolist()
    return tables


class QTableReport(Callback):
    """Prints and saves ``q_table.json`` at the end of a run, for games that know their exact values.

    Args:
        run_dir: where the file goes.
        gamma: the discount of the exact values.
    """

    def __init__(self, run_dir: str, gamma: float) -> None:
        self.path = Path(run_dir) / "q_table.json"
        self.gamma = gamma
        self.report: dict[str, Any] | None = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        data = cast(Any, trainer).datamodule
        env = data.make_eval_env(1)
        learner = cast(Any, pl_module).learner
        policy = Actor(learner.policy, 1, env.device).policy
        dtype = next(learner.parameters()).dtype
        state = torch.zeros(1, 1, env.spec.state_dim, device=pl_module.device, dtype=dtype)
        agent_qs = torch.zeros(1, 1, env.spec.n_agents, device=pl_module.device, dtype=dtype)
        if not isinstance(env, TabularGame) or learner.mixer(agent_qs, state).dim() != 2:
            _log.info("no Q table: it needs a game that knows its exact values, and a mixer")
            return
        tables = learned_tables(policy, _on_cpu(learner.mixer), env, env.histories())
        greedy = evaluate_episodes(env, Actor(policy, 1, env.device), [0], seed=0).returns[0]
        self.report = {"learned": tables, "exact": env.exact_q_values(self.gamma), "greedy_return": greedy}
        write_json(self.report, self.path)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.report is not None:
            print(_as_text(self.report), flush=True)
            self.report = None


def _on_cpu(mixer: nn.Module) -> nn.Module:
    return copy.deepcopy(mixer).to("cpu").float()


def _as_text(report: dict[str, Any]) -> str:
    lines = ["Q_tot for every state and joint action (rows: agent 1's action), learned | exact:"]
    for label, learned in report["learned"].items():
        exact = report["exact"][label]
        if not (isinstance(learned[0], list) and not isinstance(learned[0][0], list)):
            lines.append(f"  state {label}: {json.dumps(learned)} | {json.dumps(exact)}")
            continue
        for i, (row, true_row) in enumerate(zip(learned, exact, strict=True)):
            name = f"state {label}" if i == 0 else ""
            shown, true = ("  ".join(f"{v:7.2f}" for v in values) for values in (row, true_row))
            lines.append(f"  {name:<9} {shown}   | {true}")
    lines.append(f"  greedy return {report['greedy_return']:g}")
    return "\n".join(lines)
