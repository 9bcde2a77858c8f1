"""How a command ends where not even its surroundings are there."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qmix_lightning import __version__
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


@pytest.mark.parametrize("name", ["qmix-train", "qmix-envs"])
def test_the_version_is_this_packages(name: str, capsys: pytest.CaptureFixture[str]):
    """Hydra would print its own."""
    with inprocess.own_globals([name, "--version"]):
        assert hydra_app.status_of(pytest.fail, "train") == 0
    assert capsys.readouterr().out == f"qmix-lightning {__version__}\n"


def test_a_full_disk_is_told_without_a_traceback(capsys: pytest.CaptureFixture[str]):
    def write() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with inprocess.own_globals(["qmix-train"]):
        assert hydra_app.status_of(write, "train") == 1
    assert capsys.readouterr().err == "error: a file could not be written: No space left on device\n"


def test_a_signal_that_comes_before_there_is_a_run_is_told(capsys: pytest.CaptureFixture[str]):
    with inprocess.own_globals(["qmix-train"]):
        assert hydra_app.status_of(lambda: os.kill(os.getpid(), signal.SIGTERM), "train") == 143
    assert capsys.readouterr().err == "error: stopped by SIGTERM\n"


def test_a_thread_that_was_left_behind_does_not_keep_the_command():
    code = (
        "import threading, time\n"
        "from qmix_lightning.cli import hydra_app\n"
        "hydra_app.THREAD_PATIENCE_S = 0.2\n"
        "threading.Thread(target=time.sleep, args=(3600,), name='reader').start()\n"
        "hydra_app.run_without_hydra(lambda typed: print('done'))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (0, "done\n")
    assert ended.stderr == "ended without 'reader', a thread that was started here and not ended\n"


@pytest.mark.parametrize("closed", ["<&- >&-", "2>&-", "<&- >&- 2>&-"])
def test_a_service_that_gives_no_streams(tmp_path: Path, closed: str):
    """The file does not get a number that somebody prints to."""
    code = (
        "import os, sys\n"
        "from qmix_lightning.cli import hydra_app\n"
        "def command(typed):\n"
        "    print('hello'); print('hello', file=sys.stderr)\n"
        "    with open('file', 'w') as file:\n"
        "        os.system('echo hello; echo hello >&2')\n"
        "        file.write('all')\n"
        "hydra_app.run_without_hydra(command)\n"
    )
    (tmp_path / "code.py").write_text(code)
    ended = subprocess.run(f"{sys.executable} code.py {closed}", shell=True, cwd=tmp_path, capture_output=True)
    assert ended.returncode == 0
    assert (tmp_path / "file").read_text() == "all"
    assert b"Traceback" not in ended.stderr
