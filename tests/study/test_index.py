"""A run's identity, and the index that gives it a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qmix_lightning.cli.compose import composer
from qmix_lightning.errors import ConfigurationError
from qmix_lightning.study.index import Study, identity


@pytest.fixture(scope="module")
def trees() -> dict[str, dict[str, Any]]:
    """Configurations by what was typed."""
    with composer() as compose:
        typed = ("", "callbacks=q_table", "rollout.pipelined=false", "total_env_steps=2e4")
        return {text: compose([text] if text else [], [4])[0].to_dict() for text in typed}


def changed(tree: dict[str, Any], key: str, value: object) -> dict[str, Any]:
    """A configuration with another value of one setting."""
    section, _, name = key.rpartition(".")
    return {**tree, section: {**tree[section], name: value}} if section else {**tree, name: value}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rollout.num_eval_envs", 3),
        ("run_dir", "other"),
        ("logger", {}),
        ("rollout.backend", "process"),
        ("checkpoint_interval", 1),
        ("objective", "return_mean"),
    ],
)
def test_what_cannot_change_the_result_leaves_the_identity(trees: dict[str, dict[str, Any]], key: str, value: object):
    assert changed(trees[""], key, value) != trees[""]
    assert identity(changed(trees[""], key, value)) == identity(trees[""])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimizer.lr", 0.1),
        ("total_env_steps", 7),
        ("eval_interval", 10),
        ("trainer.devices", 2),
        ("init_from", "two_step"),
        ("seed", 5),
    ],
)
def test_what_decides_the_result_changes_the_identity(trees: dict[str, dict[str, Any]], key: str, value: object):
    assert identity(changed(trees[""], key, value)) != identity(trees[""])


def test_callbacks_and_how_a_setting_was_written_leave_the_identity(trees: dict[str, dict[str, Any]]):
    assert identity(trees["callbacks=q_table"]) == identity(trees[""])
    assert identity(trees["total_env_steps=2e4"]) == identity(trees[""])
    old_name = changed(trees[""], "rollout.asynchronous", False)
    assert trees["rollout.pipelined=false"]["rollout"]["asynchronous"] is False
    assert identity(trees["rollout.pipelined=false"]) == identity(old_name)


def test_a_run_keeps_the_folder_it_was_given(tmp_path: Path):
    study = Study(tmp_path)
    first = study.place("a1", "two_step/vdn/seed1", {"code": {}})
    assert study.place("a1", "called/otherwise", {"code": {"env": "x"}}) == first
    assert Study(tmp_path).runs() == {"a1": {"folder": "two_step/vdn/seed1", "code": {}}}


def test_no_two_runs_share_a_folder(tmp_path: Path):
    study = Study(tmp_path)
    (tmp_path / "run").mkdir()  # somebody else's
    folders = [study.place(name, "run", {})["folder"] for name in ("a1", "b2")]
    assert folders == ["run-2", "run-3"]


def test_a_run_may_be_begun_anew_beside_the_old_one(tmp_path: Path):
    study = Study(tmp_path)
    study.place("a1", "run", {"commit": "old"})
    assert study.place("a1", "run", {"commit": "new"}, anew=True) == {"folder": "run-2", "commit": "new"}


@pytest.mark.parametrize("folder", ["../elsewhere", "/etc", "a/../../b", "", "a//b", 3, None])
def test_an_index_cannot_send_a_run_elsewhere(tmp_path: Path, folder: object):
    (tmp_path / "study.json").write_text(json.dumps({"a1": {"folder": folder}}))
    with pytest.raises(ConfigurationError, match=r"study\.json is not the index of a study"):
        Study(tmp_path).place("a1", "run", {})


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a1": 3}', '{"a1": {}}'])
def test_a_damaged_index_is_told(tmp_path: Path, content: str):
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(ConfigurationError, match="remove it to begin anew"):
        Study(tmp_path).runs()
