"""How a command ends where not even its surroundings are there."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmix_lightning.cli import hydra_app
from support import inprocess


def test_a_working_folder_that_was_removed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    with inprocess.own_globals(["qmix-envs"]), pytest.raises(SystemExit) as ended:
        hydra_app.run_without_hydra(lambda typed: None)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: the working folder was removed: change to one that is there\n"
