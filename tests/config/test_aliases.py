"""Old names of settings go on working, wherever they are typed, and are told about once."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from qmix_lightning.config.aliases import KEYS, TARGETS, VALUES, rename_override, rename_settings
from support import inprocess, runs
from support.inprocess import TINY

TYPED: dict[str, tuple[str, str, Any]] = {
    "rollout.pipelined": ("rollout.pipelined=false", "rollout.asynchronous", False),
    "rollout.capture": ("rollout.capture=off", "rollout.cuda_graph", "off"),
    "rollout.collector=here": ("rollout.collector=here", "rollout.collector", "inline"),
    "qmix_lightning.q_table.QTableReport": (
        "callbacks.table={_target_:qmix_lightning.q_table.QTableReport,run_dir:'${run_dir}',gamma:0.99}",
        "callbacks.table._target_",
        "qmix_lightning.training.callbacks.q_table.QTableReport",
    ),
}
"""Old name -> what a user types, the key that it sets now, and the value there."""


def config_of(run_dir: Path) -> Any:
    return OmegaConf.load(run_dir / "config.yaml")


def test_every_alias_is_typed_below():
    values = {f"{key}={old}" for key, renamed in VALUES.items() for old in renamed}
    assert set(TYPED) == {*KEYS, *values, *TARGETS}


@pytest.mark.parametrize("old", TYPED)
def test_an_old_name_sets_what_it_is_called_now(tmp_path: Path, old: str):
    typed, key, value = TYPED[old]
    inprocess.succeed(["env=two_step", *TINY, typed, f"run_dir={tmp_path / 'run'}"])
    assert OmegaConf.select(config_of(tmp_path / "run"), key) == value


@pytest.mark.parametrize("old", [*KEYS, *(f"{key}={value}" for key, values in VALUES.items() for value in values)])
def test_an_old_name_in_a_file_of_the_users_own(tmp_path: Path, old: str):
    typed, key, value = TYPED[old]
    section, _, setting = typed.partition(".")
    name, _, written = setting.partition("=")
    quoted = f"'{written}'" if written == "off" else written  # which is false in YAML
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(f"# @package _global_\n{section}:\n  {name}: {quoted}\n")
    arguments = ["--config-dir", str(tmp_path / "conf"), "experiment=mine", "env=two_step", *TINY]
    inprocess.succeed([*arguments, f"run_dir={tmp_path / 'run'}"])
    assert OmegaConf.select(config_of(tmp_path / "run"), key) == value


def test_what_is_typed_wins_over_an_old_name_in_a_file():
    tree = {"rollout": {"asynchronous": "auto", "pipelined": True}}
    assert rename_settings(tree, {"rollout.asynchronous"}, silent=True) == {"rollout": {"asynchronous": "auto"}}
    assert rename_settings(tree, silent=True) == {"rollout": {"asynchronous": True}}
    assert tree == {"rollout": {"asynchronous": "auto", "pipelined": True}}


@pytest.mark.parametrize("prefix", ["", "+", "++", "~"])
def test_with_hydras_prefixes(prefix: str):
    now = "~" if prefix == "~" else "++"  # added if need be
    assert rename_override(f"{prefix}rollout.capture=off") == f"{now}rollout.cuda_graph=off"
    assert rename_override(f"{prefix}rollout.cuda_graph=off") == f"{now}rollout.cuda_graph=off"
    assert rename_override(f"{prefix}rollout.captured=off") == f"{prefix}rollout.captured=off"


def test_a_whole_group_of_the_users_own_with_old_keys(tmp_path: Path):
    """Copied from 0.1.0: it has none of the keys of today, which can be typed nevertheless, by either name."""
    folder = tmp_path / "conf" / "rollout"
    folder.mkdir(parents=True)
    shipped = Path(str(resources.files("qmix_lightning.conf").joinpath("rollout/sync.yaml"))).read_text()
    old = shipped.replace("asynchronous:", "pipelined:").replace("cuda_graph:", "capture:").replace("inline", "here")
    (folder / "mine.yaml").write_text(old)
    arguments = ["--config-dir", str(tmp_path / "conf"), "rollout=mine", "env=two_step", *TINY]
    for number, typed in enumerate([[], ["rollout.pipelined=false"], ["rollout.asynchronous=false"]]):
        run_dir = tmp_path / str(number)
        outcome = inprocess.command([*arguments, *typed, f"run_dir={run_dir}"])
        assert outcome.status == 0, outcome
        assert config_of(run_dir).rollout.asynchronous == (False if typed else "auto")
        assert config_of(run_dir).rollout.collector == "inline"


def test_a_new_name_in_one_file_wins_over_an_old_one_in_another():
    tree = {"rollout": {"asynchronous": False, "pipelined": True}}
    assert rename_settings(tree, silent=True) == {"rollout": {"asynchronous": False}}
    tree = {"rollout": {"asynchronous": "auto", "pipelined": True}}
    assert rename_settings(tree, silent=True) == {"rollout": {"asynchronous": True}}


def test_a_sweep_over_an_old_name(tmp_path: Path):
    arguments = ["-m", "env=two_step", *TINY, "rollout.pipelined=false,auto", f"run_dir={tmp_path / 'sweep'}"]
    inprocess.succeed(arguments)
    found = sorted(
        str(config_of(path).rollout.asynchronous) for path in (tmp_path / "sweep").iterdir() if path.is_dir()
    )
    assert found == ["False", "auto"]


def test_an_old_name_that_cannot_be_renamed_is_named():
    refused = inprocess.command(["env=two_step", "checkpoint_interval=${rollout.pipelined}"])
    assert refused.status == 2
    assert refused.err == "error: unknown key 'rollout.pipelined': it is called 'rollout.asynchronous' now\n"


def test_each_old_name_is_told_about_once(tmp_path: Path):
    everything = [typed for typed, _, _ in TYPED.values()]
    output = runs.run(["env=two_step", *TINY, *everything, f"run_dir={tmp_path / 'run'}"])
    told = [line for line in output.splitlines() if " is called " in line]
    assert len(told) == len(TYPED)
    for old in TYPED:
        assert sum(line.startswith(f"{old} is called ") for line in told) == 1


def test_an_old_name_goes_on_with_a_run(tmp_path: Path):
    """A resumed run compares what was typed with what the checkpoint has: by the names of today."""
    run_dir = f"run_dir={tmp_path / 'run'}"
    inprocess.succeed(["env=two_step", *TINY, "rollout.pipelined=false", run_dir])
    inprocess.succeed([run_dir, "ckpt_path=last", "total_env_steps=90", "rollout.pipelined=false"])
    refused = inprocess.command([run_dir, "ckpt_path=last", "total_env_steps=120", "rollout.pipelined=true"])
    assert refused.status == 2
    assert "rollout.asynchronous=true (the checkpoint has false)" in refused.err
