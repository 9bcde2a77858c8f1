"""Runs that begin from the networks of others: what fits is taken over, the rest is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from qmix_lightning.components import build_learner, env_maker
from qmix_lightning.errors import ConfigurationError
from qmix_lightning.policies import StoredPolicy
from qmix_lightning.policies.folder import write_policy_folder
from qmix_lightning.policies.initialize import initialize_learner
from support import inprocess
from support.compositions import run_config
from support.policies import stored_policy

GAME = ["env=pettingzoo", "env.id=support.pymarl:OfItsSizes"]


def of(*overrides: str) -> StoredPolicy:
    return stored_policy(*GAME, *overrides)


def begin(stored: StoredPolicy, *overrides: str, parts: str = "all"):
    config = run_config(*GAME, "agent.hidden_dim=16", *overrides)
    env = env_maker(config.env)(1)
    learner = build_learner(config, env.spec)
    lines = initialize_learner(learner, env.spec, stored, parts)
    env.close()
    return learner, "\n".join(lines)


def test_the_whole_learner_or_the_agents_alone():
    stored = of()
    assert stored.learner_weights is not None
    whole, told = begin(stored)
    assert all(torch.equal(whole.state_dict()[n], v) for n, v in stored.learner_weights.items())
    assert "initialised anew" not in told
    agents, told = begin(stored, parts="agents")
    state = agents.state_dict()
    assert all(torch.equal(state[f"policy.{n}"], v) for n, v in stored.weights.items())
    assert all(torch.equal(state[f"target_policy.{n}"], v) for n, v in stored.weights.items())
    assert not torch.equal(state["mixer.bias_1.weight"], stored.learner_weights["mixer.bias_1.weight"])
    assert "target networks are copies" in told


def test_another_mixer_begins_anew_and_is_told():
    _, told = begin(of(), "algorithm=qatten")
    assert "9 of 9 tensors of the agents" in told or "8 of 8 tensors of the agents" in told
    assert "initialised anew: mixer." in told


@pytest.mark.parametrize("agents", [2, 5])
def test_another_number_of_agents_where_the_network_is_shared(agents: int):
    stored = of()
    learner, told = begin(stored, f"+env.kwargs.n_agents={agents}", parts="agents")
    weight, given = learner.policy.state_dict()["agent.encode.weight"], stored.weights["agent.encode.weight"]
    same = min(given.shape[-1], weight.shape[-1])
    assert torch.equal(weight[..., :same], given[..., :same]), "observation, last action, and the agents both have"
    assert "all but the identities" in told


def test_networks_of_other_sizes_are_refused():
    with pytest.raises(ConfigurationError, match="tensors of a test's policy's agents fit"):
        begin(of(), "agent.hidden_dim=8", parts="agents")


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A policy folder, a finished run whose agents are those of the folder, and what it printed."""
    folder = tmp_path_factory.mktemp("begun")
    team, run = folder / "team", folder / "run"
    write_policy_folder(of("agent.hidden_dim=8"), team)
    typed = [*GAME, *inprocess.TINY, "total_env_steps=40", f"run_dir={run}", f"init_from={team}"]
    return team, run, inprocess.succeed([*typed, "init_parts=agents"]).out


def test_by_the_command(begun: tuple[Path, Path, str], tmp_path: Path):
    _, run, told = begun
    assert "tensors of the agents" in told
    shutil.copytree(run, tmp_path / "run")
    outcome = inprocess.succeed([f"run_dir={tmp_path / 'run'}", "ckpt_path=last", "total_env_steps=50", GAME[1]])
    assert "tensors of the agents" not in outcome.out, "a resumed run goes on from its own checkpoint"


def test_a_checkpoint_that_is_not_there_is_named_and_nothing_is_written(tmp_path: Path):
    typed = [*GAME, *inprocess.TINY, f"run_dir={tmp_path / 'other'}", "init_from=nothing.ckpt"]
    assert inprocess.refused(typed) == "error: there is no checkpoint at nothing.ckpt"
    assert not (tmp_path / "other").exists()


def test_a_run_that_was_killed_before_its_first_checkpoint_does_not_forget_where_it_began(
    begun: tuple[Path, Path, str], tmp_path: Path
):
    team, run = begun[0], Path(shutil.copytree(begun[1], tmp_path / "run"))
    for path in (run / "checkpoints").glob("*.ckpt"):
        path.unlink()
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"status": "running"}))
    again = [f"run_dir={run}", "ckpt_path=last", GAME[1]]
    refused = inprocess.command(again)
    assert refused.status == 2
    assert f"type init_from={team} too" in refused.err
    assert "tensors of the agents" in inprocess.succeed([*again, f"init_from={team}"]).out
