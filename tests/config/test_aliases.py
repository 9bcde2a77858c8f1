"""Old names of settings go on working, wherever they are typed, and are told about once."""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest

from qmix_lightning.config.aliases import GONE, KEYS, TARGETS, VALUES, rename_override, rename_settings
from qmix_lightning.config.tree import flatten
from support import inprocess

TYPED: dict[str, tuple[str, str, Any]] = {
    "rollout.pipelined": ("rollout.pipelined=false", "rollout.asynchronous", False),
    "rollout.collector=here": ("rollout.collector=here", "rollout.collector", "inline"),
    "qmix_lightning.q_table.QTableReport": (
        "callbacks.table={_target_:qmix_lightning.q_table.QTableReport,run_dir:'${run_dir}',gamma:0.99}",
        "callbacks.table._target_",
        "qmix_lightning.training.callbacks.q_table.QTableReport",
    ),
}
"""Old name -> what a user types, the key that it sets now, and the value there."""


def test_every_alias_is_typed_below():
    values = {f"{key}={old}" for key, renamed in VALUES.items() for old in renamed}
    assert set(TYPED) == {*KEYS, *values, *TARGETS}
    assert all(callable(resolve_name(target)) for target in TARGETS.values())


def test_old_names_set_what_they_are_called_now_and_each_is_told_about_once(tmp_path: Path):
    typed = [typed for typed, _, _ in TYPED.values()]
    config, said = inprocess.configured([*typed, f"run_dir={tmp_path / 'run'}"])
    values = flatten(config.to_dict())
    assert [values[key] for _, key, _ in TYPED.values()] == [value for _, _, value in TYPED.values()]
    told = [line.partition(" is called ")[0] for line in said.splitlines() if " is called " in line]
    assert sorted(told) == sorted(TYPED)


def test_old_names_in_a_file_of_the_users_own(tmp_path: Path):
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("# @package _global_\nrollout:\n  pipelined: false\n  collector: here\n")
    typed = ["--config-dir", str(tmp_path / "conf"), "experiment=mine", f"run_dir={tmp_path / 'run'}"]
    rollout = inprocess.configured(typed)[0].rollout
    assert (rollout.asynchronous, rollout.collector) == (False, "inline")


def test_what_is_typed_wins_over_an_old_name_in_a_file():
    tree = {"rollout": {"asynchronous": "auto", "pipelined": True}}
    assert rename_settings(tree, {"rollout.asynchronous"}, silent=True) == {"rollout": {"asynchronous": "auto"}}
    assert rename_settings(tree, silent=True) == {"rollout": {"asynchronous": True}}
    assert tree == {"rollout": {"asynchronous": "auto", "pipelined": True}}


@pytest.mark.parametrize("prefix", ["", "+", "++", "~"])
def test_with_hydras_prefixes(prefix: str):
    now = "~" if prefix == "~" else "++"  # added if need be
    assert rename_override(f"{prefix}rollout.pipelined=true") == f"{now}rollout.asynchronous=true"
    assert rename_override(f"{prefix}rollout.asynchronous=true") == f"{now}rollout.asynchronous=true"
    assert rename_override(f"{prefix}rollout.pipelines=true") == f"{prefix}rollout.pipelines=true"


def test_a_setting_that_has_no_effect_any_more_is_dropped(capsys: pytest.CaptureFixture[str]):
    """Typed, in a file of the user's own, and in a checkpoint."""
    assert [rename_override(f"{key}=off") for key in GONE] == [f"++{key}=off" for key in GONE]
    sections = {"rollout": {key.partition(".")[2]: "off" for key in GONE} | {"backend": "sync"}}
    assert rename_settings(sections) == {"rollout": {"backend": "sync"}}
    told = capsys.readouterr().err.splitlines()
    assert [line.split(" ")[0] for line in told] == list(GONE)
    assert all("has no effect any more" in line for line in told)


def test_a_whole_group_of_the_users_own_with_old_keys(tmp_path: Path):
    """Copied from 0.1.0: it has none of the keys of today, which can be typed nevertheless, by either name."""
    folder = tmp_path / "conf" / "rollout"
    folder.mkdir(parents=True)
    shipped = Path(str(resources.files("qmix_lightning.conf").joinpath("rollout/sync.yaml"))).read_text()
    old = shipped.replace("asynchronous:", "pipelined:").replace("inline", "here")
    (folder / "mine.yaml").write_text(old)
    arguments = ["--config-dir", str(tmp_path / "conf"), "rollout=mine", f"run_dir={tmp_path / 'run'}"]
    for typed in ([], ["rollout.pipelined=false"], ["rollout.asynchronous=false"]):
        rollout = inprocess.configured([*arguments, *typed])[0].rollout
        assert (rollout.asynchronous, rollout.collector) == (False if typed else "auto", "inline")


def test_a_new_name_in_one_file_wins_over_an_old_one_in_another():
    tree = {"rollout": {"asynchronous": False, "pipelined": True}}
    assert rename_settings(tree, silent=True) == {"rollout": {"asynchronous": False}}
    tree = {"rollout": {"asynchronous": "auto", "pipelined": True}}
    assert rename_settings(tree, silent=True) == {"rollout": {"asynchronous": True}}


def test_an_old_name_that_cannot_be_renamed_is_named():
    line = inprocess.refused(["env=two_step", "checkpoint_interval=${rollout.pipelined}"])
    assert line == "error: unknown key 'rollout.pipelined': it is called 'rollout.asynchronous' now"


def test_an_old_name_goes_on_with_a_run(finished_run: Path, tmp_path: Path):
    """A resumed run compares what was typed with what the checkpoint has: by the names of today."""
    shutil.copytree(finished_run, tmp_path / "run")
    typed = [f"run_dir={tmp_path / 'run'}", "ckpt_path=last", "total_env_steps=62"]
    refused = inprocess.command([*typed, "rollout.pipelined=true"])
    assert refused.status == 2
    assert "rollout.asynchronous=true (the checkpoint has 'auto')" in refused.err
    inprocess.succeed([*typed, "rollout.pipelined=auto"])
