"""Report the learned team values of a small game beside the exact ones."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from qmix_lightning.agents.policy import Policy
from qmix_lightning.environment import TabularGame, VectorEnv
from qmix_lightning.mixers.base import MixerCall
from qmix_lightning.nn.running_moments import RunningMoments
from qmix_lightning.rollout.evaluation import evaluate_episodes
from qmix_lightning.rollout.rollout_policy import RolloutPolicy, frozen_copy
from qmix_lightning.training.summary import write_json
from qmix_lightning.types import Observation, TrajectoryBatch

__all__ = ["QTableReport", "learned_tables"]

_log = logging.getLogger(__name__)


def _as_it_is(value: Tensor) -> Tensor:
    return value


@torch.no_grad()
def learned_tables(
    policy: Policy,
    mixer: nn.Module,
    env: VectorEnv,
    histories: dict[str, Any],
    scaled: Callable[[Tensor], Tensor] = _as_it_is,
) -> dict[str, Any] | None:
    """Return ``Q_tot`` of every joint action in every state of a game.

    A recurrent agent's values depend on how the state was reached, so they are averaged over the given histories.

    Args:
        policy: the agents.
        mixer: it receives the arguments that it declares, see :class:`MixerCall`.
        env: one environment of the game.
        histories: state label to the joint-action sequences that lead there.
        scaled: from what the networks learn to the scale of returns.

    Returns:
        State label to nested lists, one level for each agent's action; ``None`` if the mixer leaves every agent a value
        of its own.
    """
    one = torch.ones(1, dtype=torch.bool)
    mix = MixerCall(mixer)
    counts = env.spec.action_counts
    joint = torch.tensor(list(itertools.product(*map(range, counts))))  # [J, N]
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
            rows = _as_rows(observation, joint)
            value = mix(mixer, q[:, None].expand(len(joint), -1, -1, -1), rows.actions, rows, slice(0, -1))  # [J, 1]
            if value.dim() != 2:
                return None
            values.append(scaled(value).reshape(counts))
        tables[label] = torch.stack(values).mean(0).tolist()
    return tables


def _as_rows(observation: Observation, joint: Tensor) -> TrajectoryBatch:
    """Return one observation as rows of one step each: row ``j`` takes the joint action ``joint[j]``."""
    count = len(joint)

    def repeated(value: Tensor) -> Tensor:
        return value[:, None].expand(count, 2, *value.shape[1:])  # [J, T+1, ...]

    step = torch.ones(count, 1, dtype=torch.bool)
    return TrajectoryBatch(
        obs=repeated(observation.obs),
        state=repeated(observation.state),
        avail_actions=repeated(observation.avail_actions),
        agent_mask=repeated(observation.agent_mask),
        actions=joint[:, None],
        reward=torch.zeros(count, 1),
        terminated=step,
        truncated=~step,
        filled=step,
    )


class QTableReport(Callback):
    """Callback that prints and saves ``q_table.json`` at the end of a run, for games that know their exact values.

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
        env = cast(Any, trainer).datamodule.make_eval_env(1)
        try:
            self._report(env, cast(Any, pl_module).learner)
        finally:
            env.close()

    def _report(self, env: VectorEnv, learner: Any) -> None:
        policy = frozen_copy(learner.policy, env.device)
        mixer = getattr(learner, "mixer", None)  # not every algorithm has one
        game = env if isinstance(env, TabularGame) else None
        moments = getattr(learner, "value_moments", None)
        scaled = frozen_copy(moments).restore if isinstance(moments, RunningMoments) else _as_it_is
        tables = None
        if game is not None and isinstance(mixer, nn.Module):
            tables = learned_tables(policy, frozen_copy(mixer), env, game.histories(), scaled)
        if game is None or tables is None:
            _log.info("no Q table: it needs a game that knows its exact values, and a mixer")
            return
        greedy = evaluate_episodes(env, RolloutPolicy(policy, 1, env.device), [0], seed=0).returns[0]
        self.report = {"learned": tables, "exact": game.exact_q_values(self.gamma), "greedy_return": greedy}
        write_json(self.report, self.path)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.report is not None:
            print(_as_text(self.report), flush=True)
            self.report = None


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
