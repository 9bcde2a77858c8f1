"""``qmix-import pymarl``: what PyMARL has saved is evaluated here, and trained on as PyMARL would."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qmix_lightning.algorithms.q_learning import QLearning
from qmix_lightning.commands import import_policy
from qmix_lightning.errors import CheckpointError
from qmix_lightning.policies import open_policy
from qmix_lightning.policies.initialize import set_square_averages
from qmix_lightning.policies.pymarl import read_pymarl
from qmix_lightning.types import TrajectoryBatch
from support import inprocess
from support.pymarl import DATA

ENV = ["env=pettingzoo", "env.id=support.pymarl:OfItsSizes"]


@pytest.fixture(scope="module", params=["living_agents", "dying_agents"])
def imported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, list[str]]:
    output = tmp_path_factory.mktemp("imported") / "team"
    return request.param, output, import_policy.import_pymarl(DATA / request.param, output, ENV)


def batch(numbers: Any, number: int) -> TrajectoryBatch:
    """A batch of theirs in this package's layout: their ``filled`` marks observations, their last action is none."""
    given = {
        name.partition("/")[2]: torch.from_numpy(numbers[name])
        for name in numbers
        if name.startswith(f"batch{number}/")
    }
    return TrajectoryBatch(
        obs=given["obs"],
        state=given["state"],
        avail_actions=given["avail_actions"].bool(),
        agent_mask=(given["obs"] != 0).any(-1),
        actions=given["actions"][:, :-1, :, 0],
        reward=given["reward"][:, :-1, 0],
        terminated=given["terminated"][:, :-1, 0].bool(),
        truncated=given["truncated_of_ours"],
        filled=given["filled"][:, 1:, 0].bool(),
    )


def test_twenty_further_updates_are_pymarls(imported: tuple[str, Path, list[str]]):
    """With everything from the policy folder: networks, mixer, RMSprop's state, and the settings of the learner."""
    name, folder, _ = imported
    numbers = np.load(DATA / name / "batches_and_expected.npz")
    settings = json.loads((DATA / name / "config.json").read_text())
    stored = open_policy(folder)
    learner = stored.build_learner()
    assert learner is not None
    assert stored.optimizer is not None
    trained = [p for p in learner.parameters() if p.requires_grad]
    optimizer = torch.optim.RMSprop(trained, lr=settings["lr"], alpha=settings["optim_alpha"], eps=1e-5)
    set_square_averages(optimizer, learner, stored.optimizer)
    losses = []
    for number in range(20):
        terms = learner.loss(batch(numbers, number % 6))
        loss = terms.total / terms.count
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, settings["grad_norm_clip"])
        optimizer.step()
        losses.append(loss.item())
    assert losses == pytest.approx(numbers["losses"].tolist(), rel=1e-5)
    run = read_pymarl(DATA / name)
    names = {f"agent/{n}": f"policy.{o}" for n, o in zip(run.agent, run.weights(), strict=True)}
    names |= {f"mixer/{n}": o for n, o in zip(run.mixer, run.learner_weights(), strict=False)}
    ours = learner.state_dict()
    assert len(names) == len(trained)
    for theirs, here in names.items():
        expected = torch.from_numpy(numbers[f"after20/{theirs}"])
        assert (ours[here].view_as(expected) - expected).abs().max() < 1e-6, theirs


def test_the_default_is_another_loss_where_agents_die_and_only_there(imported: tuple[str, Path, list[str]]):
    name, folder, _ = imported
    numbers = np.load(DATA / name / "batches_and_expected.npz")
    stored = open_policy(folder)
    assert stored.algorithm["dead_agents"] == "no_op"
    learner = replace(stored, algorithm=stored.algorithm | {"dead_agents": "zero"}).build_learner()
    assert learner is not None
    first = batch(numbers, 0)
    terms = learner.loss(first)
    loss, expected = (terms.total / terms.count).item(), numbers["losses"][0]
    if name == "living_agents":
        assert loss == pytest.approx(expected, rel=1e-6)
    else:
        assert not first.mask_invalid().agent_mask[first.row_valid()].all()
        assert loss != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("imported", ["living_agents"], indirect=True)
def test_it_is_evaluated(imported: tuple[str, Path, list[str]]):
    outcome = inprocess.succeed([str(imported[1]), ENV[1], "episodes=4", "output=-"], "evaluate")
    assert 0 <= json.loads(outcome.out)["return_mean"] <= 15


@pytest.mark.parametrize("imported", ["living_agents"], indirect=True)
def test_training_goes_on_with_the_command_that_is_printed(imported: tuple[str, Path, list[str]], tmp_path: Path):
    typed = imported[2][-1].partition("qmix-train ")[2].split()
    few = ["total_env_steps=60", "replay.batch_size=4", "replay.capacity=32", "logger=none", "trainer.accelerator=cpu"]
    outcome = inprocess.succeed([*typed, *few, "eval_episodes=2", f"run_dir={tmp_path / 'run'}"])
    assert "8 of 8 tensors of the agents\n" in outcome.out
    assert "14 of 14 tensors of the rest of the learner\n" in outcome.out
    assert "RMSprop's state too" in outcome.out


@pytest.mark.parametrize(("name", "agent"), [("pymarl2", "recurrent"), ("epymarl_feedforward", "feedforward")])
def test_values_of_its_relatives_are_theirs(name: str, agent: str, tmp_path: Path):
    """What PyMARL2 and EPyMARL save: their own values and Q_tot of the same steps."""
    lines = import_policy.import_pymarl(DATA / name, tmp_path / "team", ENV)
    stored = open_policy(tmp_path / "team")
    assert stored.agent["name"] == agent
    assert "no state of Adam" in lines[0]
    assert "optimizer=adam" in lines[-1]
    assert "optimizer.eps" not in lines[-1]
    theirs = {key: torch.from_numpy(value) for key, value in np.load(DATA / name / "expected.npz").items()}
    learner = stored.build_learner()
    assert isinstance(learner, QLearning)
    episodes, steps, agents, _ = theirs["obs"].shape
    memory, last, values = learner.policy.initial_state(episodes), torch.full((episodes, agents), -1), []
    for step in range(steps):
        q, memory = learner.policy(theirs["obs"][:, step], last, memory)
        values.append(q)
        last = theirs["actions"][:, step]
    assert (torch.stack(values, 1) - theirs["values"]).abs().max() < 1e-6
    chosen = theirs["values"].gather(-1, theirs["actions"][..., None])[..., 0]
    assert (learner.mixer(chosen, theirs["state"]) - theirs["q_tot"]).abs().max() < 1e-6


@pytest.mark.parametrize("name", ["pymarl2", "epymarl_feedforward"])
def test_without_its_state_the_optimiser_is_told_from_the_settings(name: str, tmp_path: Path):
    shutil.copytree(DATA / name, tmp_path / "given")
    (tmp_path / "given" / "opt.th").unlink()
    assert "optimizer=adam" in import_policy.import_pymarl(tmp_path / "given", tmp_path / "team", ENV)[-1]


def test_another_positive_function_is_refused(tmp_path: Path):
    shutil.copytree(DATA / "pymarl2", tmp_path / "given")
    config = tmp_path / "given" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"qmix_pos_func": "softplus"}))
    with pytest.raises(CheckpointError, match="qmix_pos_func 'softplus'"):
        import_policy.import_pymarl(tmp_path / "given", tmp_path / "team", ENV)


def test_an_actor_is_refused_since_it_gives_no_values(tmp_path: Path):
    for name in ("told", "seen"):
        shutil.copytree(DATA / "epymarl_feedforward", tmp_path / name)
        (tmp_path / name / "mixer.th").unlink()
    config = tmp_path / "told" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"agent_output_type": "pi_logits"}))
    (tmp_path / "seen" / "critic.th").touch()
    for name in ("told", "seen"):
        with pytest.raises(CheckpointError, match=f"{name} is of an actor with a critic"):
            read_pymarl(tmp_path / name)


def test_a_folder_may_have_the_name_that_pymarl2_gives_it(tmp_path: Path):
    folder = tmp_path / "qmix_env=8_adam_td_lambda__2021-03-01_12-00-00" / "2000000"
    shutil.copytree(DATA / "pymarl2", folder)
    output = tmp_path / "team"
    typed = ["pymarl", str(folder), *ENV, f"output={output}"]
    outcome = inprocess.without_hydra("qmix-import", import_policy._import, typed)
    assert outcome.status == 0, outcome
    assert open_policy(output).algorithm["name"] == "qmix"


def test_without_their_settings_the_inputs_are_told_from_the_shapes(tmp_path: Path):
    shutil.copytree(DATA / "living_agents", tmp_path / "given")
    (tmp_path / "given" / "config.json").unlink()
    import_policy.import_pymarl(tmp_path / "given", tmp_path / "team", ENV)
    agent = open_policy(tmp_path / "team").agent
    assert (agent["use_last_action"], agent["use_agent_id"], agent["hidden_dim"]) == (True, True, 16)


def test_a_network_of_another_environment_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match="has values of 5 actions, and this environment has 2"):
        import_policy.import_pymarl(DATA / "living_agents", tmp_path / "team", ["env=two_step"])
    with pytest.raises(CheckpointError, match="has a network of 15 inputs"):
        import_policy.import_pymarl(DATA / "living_agents", tmp_path / "team", [*ENV, "env.kwargs.n_agents=2"])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there(tmp_path: Path):
    with pytest.raises(CheckpointError, match="is not there"):
        import_policy.import_pymarl(tmp_path / "nowhere", tmp_path / "team", ENV)
