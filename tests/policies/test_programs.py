"""What is exported chooses what the policy chooses: every agent class and algorithm of the registries.

On a game with memory, masks, ragged observations, dying agents, normalised observations and unit groups.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qmix_lightning.agents import AGENTS
from qmix_lightning.algorithms import ALGORITHMS
from qmix_lightning.components import policy_class
from qmix_lightning.errors import RunError
from qmix_lightning.nn.layers import parameter_sets
from qmix_lightning.policies import StoredPolicy
from qmix_lightning.policies.agent_program import AgentProgram, agent_programs
from qmix_lightning.policies.programs import export_programs
from qmix_lightning.policies.verify import verify_programs
from support.cases import every_value
from support.policies import ENV, Skirmish, stored_policy

SHARING = ["true", "false", "group"]
AN_ALGORITHM_OF = {policy_class(name): name for name in reversed(ALGORITHMS.names())}
"""Each class of acting network -> an algorithm that trains it: what else an algorithm has is not exported."""

NORMALISE = ("recurrent", "feedforward")

TYPED = {"id": "support.policies:Skirmish"}


def of_agent(name: str) -> list[str]:
    """The agent, with normalised observations where it takes them."""
    return [f"agent={name}", f"agent.normalize_obs={'true' if name in NORMALISE else 'false'}"]


def export(stored: StoredPolicy, folder: Path, kind: str, steps: int = 60) -> list[str]:
    return list(export_programs(stored, folder, kinds=[kind], verify_steps=steps, num_envs=4, env=TYPED))


def eager(program: AgentProgram) -> Any:
    """A program that was not exported."""

    def run(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.no_grad():
            found = program(*(torch.from_numpy(feeds[name]) for name in program.input_names))
        return {name: value.numpy() for name, value in zip(program.output_names, found, strict=True)}

    return run


def compared(stored: StoredPolicy, steps: int = 40) -> Any:
    programs = agent_programs(stored.build())
    sets = parameter_sets(stored.agent["share_parameters"], stored.spec.group_of_agent)
    memory = programs[0].memory_sizes
    return verify_programs(stored, [eager(p) for p in programs], sets, memory, steps=steps, num_envs=4, env=TYPED)


@pytest.mark.parametrize(
    ("algorithm", "agent", "share"), every_value(AN_ALGORITHM_OF.values(), AGENTS.names(), SHARING)
)
def test_one_agent_alone_chooses_as_in_the_team(algorithm: str, agent: str, share: str):
    stored = stored_policy(f"algorithm={algorithm}", f"agent.share_parameters={share}", *of_agent(agent))
    report = compared(stored)
    assert report.differing == 0
    assert report.furthest < 1e-4
    assert report.close < report.choices / 2, "else nothing was compared"


@pytest.mark.parametrize("changes", [["agent.layer_norm=true", "agent.dueling=true"], ["agent.use_agent_id=false"]])
def test_other_settings_of_an_agent_are_exported_too(changes: list[str]):
    assert compared(stored_policy("agent=recurrent", *changes)).differing == 0


def test_a_comparison_finds_a_program_of_another_policy():
    stored, other = stored_policy(), stored_policy(seed=1)
    programs = [eager(p) for p in agent_programs(other.build())]
    report = verify_programs(stored, programs, [0, 0, 0], [16], steps=60, num_envs=4, env=TYPED)
    assert report.differing > 10


def test_probabilities_are_those_of_the_policy():
    stored = stored_policy("algorithm=coma")
    (program,) = agent_programs(stored.build())
    team = stored.team()
    env = Skirmish()
    observations, infos = env.reset(seed=0)
    team.act(observations, {agent: infos[agent]["action_mask"] for agent in env.agents})
    obs = torch.zeros(3, stored.spec.obs_dim)
    mask = torch.zeros(3, stored.spec.n_actions, dtype=torch.bool)
    for slot, name in enumerate(stored.spec.agent_names):
        obs[slot, : observations[name].size] = torch.from_numpy(observations[name])
        mask[slot, : infos[name]["action_mask"].size] = torch.from_numpy(infos[name]["action_mask"])
    found = program(obs, torch.full((3,), -1), torch.arange(3), mask, torch.zeros(3, 16))
    expected = team.probabilities
    assert expected is not None
    np.testing.assert_allclose(found[2].numpy(), expected[0], atol=1e-6)


@pytest.mark.parametrize(
    ("algorithm", "agent"), [("coma", "feedforward"), pytest.param("qmix", "recurrent", marks=pytest.mark.slow)]
)
def test_torch_export_of_a_policy_with_groups(algorithm: str, agent: str, tmp_path: Path):
    stored = stored_policy(f"algorithm={algorithm}", "agent.share_parameters=group", *of_agent(agent))
    lines = export(stored, tmp_path, "torch_export")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["programs.json", "set_0.pt2", "set_1.pt2"]
    assert " 0 of " in lines[-1]


def test_an_onnx_policy_plays_without_torch_and_this_package(tmp_path: Path):
    """The runner that is written beside it, in a process that cannot import either."""
    stored = stored_policy("agent.share_parameters=group")
    export(stored, tmp_path, "onnx")
    team, env = stored.team(), Skirmish()
    observations, infos = env.reset(seed=3)
    shown, chosen = [], []
    while env.agents:
        masks = {agent: infos[agent]["action_mask"] for agent in env.agents}
        shown.append([{a: observations[a].tolist() for a in env.agents}, {a: m.tolist() for a, m in masks.items()}])
        chosen.append(team.act({agent: observations[agent] for agent in env.agents}, masks))
        observations, _, _, _, infos = env.step(chosen[-1])
    code = (
        "import sys, json; sys.modules['torch'] = sys.modules['qmix_lightning'] = None\n"
        f"sys.path.insert(0, {str(tmp_path)!r}); from onnx_runner import OnnxTeam\n"
        f"team = OnnxTeam({str(tmp_path)!r})\n"
        "shown = json.load(sys.stdin)\n"
        "print(json.dumps([team.act(*each) for each in shown]))\n"
        "(observations, masks), first = shown[0], next(iter(shown[0][0]))\n"
        "team.reset()\n"
        "print(json.dumps(team.act({name: {'observation': obs} for name, obs in observations.items()}, masks)))\n"
        "obs, mask = observations[first], masks[first]\n"
        "for wrong in ((1.0, mask), (obs, [1]), (obs, [0] * len(mask))):\n"
        "    try:\n"
        "        team.act({first: wrong[0]}, {first: wrong[1]})\n"
        "    except ValueError as error:\n"
        "        print(error)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(shown), capture_output=True, text=True, check=True
    )
    played, as_a_part, *refused = ended.stdout.splitlines()
    assert json.loads(played) == chosen
    assert json.loads(as_a_part) == chosen[0]
    assert len(refused) == 3
    assert "not 1 and" in refused[0]
    assert refused[1].endswith("and 1")
    assert refused[2].endswith("leaves no legal action")


def test_a_program_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(AgentProgram, "forward", _of_nobody)
    with pytest.raises(RunError, match="does not choose what the policy chooses"):
        export(stored_policy(*ENV), tmp_path, "torch_export")


def _of_nobody(self: AgentProgram, obs: Any, last_action: Any, agent_id: Any, mask: Any, *memory: Any) -> Any:
    return mask.long().argmax(-1), -obs[:, : mask.shape[1]], *(part + 1.0 for part in memory)


@pytest.mark.slow
@pytest.mark.parametrize("share", SHARING)
@pytest.mark.parametrize("agent", AGENTS.names())
@pytest.mark.parametrize("algorithm", ALGORITHMS.names())
def test_onnx_of_everything(algorithm: str, agent: str, share: str, tmp_path: Path):
    stored = stored_policy(f"algorithm={algorithm}", f"agent.share_parameters={share}", *of_agent(agent))
    lines = export(stored, tmp_path, "onnx", steps=10_000)
    assert ": 0 of " in lines[-1]
