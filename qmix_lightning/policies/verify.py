"""Compare exported programs with the policy, step by step on episodes of its environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qmix_lightning.components import env_maker
from qmix_lightning.environment import VectorEnv
from qmix_lightning.policies.opener import open_network
from qmix_lightning.policies.stored import StoredPolicy
from qmix_lightning.policies.team import Team
from qmix_lightning.runtime import prng
from qmix_lightning.vector.team_env import let_self_follow

__all__ = ["Program", "Report", "compare_programs", "verify_programs"]

Program = Callable[[dict[str, NDArray[Any]]], dict[str, NDArray[Any]]]
"""A program that runs: inputs by name to outputs by name."""

CLOSE = 1e-5
"""Relative distance of the two best legal values below which rounding may choose."""

_EXPLORED = 0.1
_SEED = 20_000


@dataclass
class Report:
    """What a comparison found.

    Attributes:
        steps: joint steps that were compared.
        choices: choices of single agents in them.
        close: of these, how many had two best legal values closer than :data:`CLOSE`.
        differing: of the others, how many differed; a program must have none.
        furthest: the largest difference of a value.
    """

    steps: int = 0
    choices: int = 0
    close: int = 0
    differing: int = 0
    furthest: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.differing} of {self.choices:,} choices differ in {self.steps:,} steps; {self.close:,} had two best "
            f"values closer than {CLOSE:g} and were not compared; values differ by at most {self.furthest:.1e}"
        )


def verify_programs(
    stored: StoredPolicy,
    programs: Sequence[Program],
    sets: Sequence[int],
    memory: Sequence[int],
    *,
    steps: int,
    num_envs: int,
    env: Mapping[str, Any],
) -> Report:
    """Play the policy's own environment and compare every choice.

    Args:
        stored: the policy.
        programs: of each set of parameters.
        sets: which of them each agent runs.
        memory: sizes of the parts of an agent's memory.
        steps: joint steps, over all environments.
        num_envs: environments that step together.
        env: settings that differ from the policy's.
    """
    environment = env_maker(stored.env_section(env), evaluation=True, open_policy=open_network)(num_envs)
    try:
        stored.check_env(environment.spec)
        let_self_follow(environment, stored.build())
        team = stored.team(environment.num_envs, device=environment.device)
        return compare_programs(environment, team, programs, sets, memory, steps=steps)
    finally:
        environment.close()


def compare_programs(
    env: VectorEnv,
    team: Team,
    programs: Sequence[Program],
    sets: Sequence[int],
    memory: Sequence[int],
    *,
    steps: int,
) -> Report:
    """Let ``team`` play, exploring a little, and ask ``programs`` at every step what they would choose."""
    report, key = Report(), prng.derive_key(_SEED, prng.Purpose.EVAL_RESET)
    others = _Runner((env.num_envs, team.spec.n_agents), programs, sets, memory)
    ended, begun = np.ones(env.num_envs, bool), 0
    observation: Any = None
    while report.steps < steps:
        if ended.any():
            numbers = np.arange(begun, begun + env.num_envs, dtype=np.uint64)
            begun += env.num_envs
            observation = env.reset(torch.from_numpy(ended), torch.from_numpy(prng.to_seed(prng.fold(key, numbers))))
            team.reset(ended)
            others.reset(ended)
        alive, avail = (t.numpy(force=True).copy() for t in (observation.agent_mask, observation.avail_actions))
        obs = observation.obs.numpy(force=True).astype(np.float32)
        actions = team.step(observation, _EXPLORED).numpy(force=True).astype(np.int64)
        chosen, values = others.step(obs, avail, alive, actions)
        _compare(report, team.values, np.where(avail, values, -np.inf), chosen, alive)
        report.steps += env.num_envs
        outcome = env.step(torch.from_numpy(actions).to(env.device), torch.ones(env.num_envs, dtype=torch.bool))
        observation = outcome.next
        ended = (outcome.terminated | outcome.truncated).numpy(force=True).copy()
        if outcome.failed is not None:
            ended |= outcome.failed.numpy(force=True)
    return report


def _compare(
    report: Report, expected: NDArray[Any], values: NDArray[Any], chosen: NDArray[Any], alive: NDArray[Any]
) -> None:
    expected, values, chosen = expected[alive], values[alive], chosen[alive]  # [P, A]
    legal = np.isfinite(expected)
    best = np.sort(np.where(legal, expected, -np.inf), axis=-1)[:, ::-1]
    second = best[:, 1] if best.shape[1] > 1 else np.full(len(best), -np.inf)
    size = np.maximum(np.abs(best[:, 0]), np.where(np.isfinite(second), np.abs(second), 0.0))
    close = best[:, 0] - second <= CLOSE * size
    report.choices += len(chosen)
    report.close += int(close.sum())
    report.differing += int((~close & (chosen != expected.argmax(-1))).sum())
    if legal.any():
        report.furthest = max(report.furthest, float(np.abs(expected[legal] - values[legal]).max()))


class _Runner:
    """Runs programs for every agent of every environment, as somebody who has nothing but them would."""

    def __init__(
        self, shape: tuple[int, int], programs: Sequence[Program], sets: Sequence[int], memory: Sequence[int]
    ) -> None:
        self._shape = shape
        self._programs = programs
        self._slots = [np.flatnonzero(np.asarray(sets) == number) for number in range(len(programs))]
        self._memory = {f"memory_{i}": np.zeros((*shape, size), np.float32) for i, size in enumerate(memory)}
        self._last = np.full(self._shape, -1)

    def reset(self, mask: NDArray[Any]) -> None:
        self._last[mask] = -1
        for part in self._memory.values():
            part[mask] = 0.0

    def step(
        self, obs: NDArray[Any], avail: NDArray[Any], alive: NDArray[Any], taken: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return what would be chosen ``[E, N]`` and values ``[E, N, A]``; then go on with what was ``taken``."""
        chosen, values = np.zeros(self._shape, np.int64), np.zeros(avail.shape, np.float32)
        for program, slots in zip(self._programs, self._slots, strict=True):
            rows = (len(obs), len(slots))
            feeds: dict[str, NDArray[Any]] = {
                "obs": obs[:, slots].reshape(-1, obs.shape[-1]),
                "last_action": self._last[:, slots].reshape(-1),
                "agent_id": np.tile(slots, len(obs)),
                "mask": avail[:, slots].reshape(-1, avail.shape[-1]),
            }
            feeds |= {name: part[:, slots].reshape(-1, part.shape[-1]) for name, part in self._memory.items()}
            found = program(feeds)
            chosen[:, slots] = found["action"].reshape(rows)
            values[:, slots] = found["values"].reshape(*rows, -1)
            for name, value in found.items():
                if name.startswith("next_memory_"):
                    kept = np.where(alive[:, slots, None], value.reshape(*rows, -1), 0.0)
                    self._memory[name.removeprefix("next_")][:, slots] = kept
        self._last = taken.copy()
        return chosen, values
