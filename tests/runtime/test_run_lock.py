"""One process at a time in a run folder, whatever ends it."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from qmix_lightning.errors import ConfigurationError
from qmix_lightning.runtime import run_lock
from qmix_lightning.runtime.run_lock import LOCK_FILE, RunLock

HOLD = """
import sys
from pathlib import Path
from qmix_lightning.runtime.run_lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of ``run`` until its standard input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.communicate()


def test_the_second_is_told_who_holds_it(tmp_path, holder):
    with (
        pytest.raises(ConfigurationError, match=rf"run is in use by process {holder.pid}: wait"),
        RunLock(tmp_path / "run"),
    ):
        pass
    assert (tmp_path / "run" / LOCK_FILE).exists()


def test_a_kill_releases_it(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "run" / LOCK_FILE).exists()
    with RunLock(tmp_path / "run"):
        assert (tmp_path / "run" / LOCK_FILE).read_text() == f"{os.getpid()}\n"
    assert list((tmp_path / "run").iterdir()) == []


def test_it_is_free_again_after_the_end(tmp_path):
    for _ in range(2):
        with RunLock(tmp_path / "run"):
            with pytest.raises(ConfigurationError, match=f"process {os.getpid()}"), RunLock(tmp_path / "run"):
                pass
            assert (tmp_path / "run" / LOCK_FILE).exists()


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK_FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError, match="cannot be made"), RunLock(tmp_path / "run"):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_system_without_locks_is_told_about(tmp_path, monkeypatch, capsys):
    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_lock.fcntl, "flock", refuse)
    with RunLock(tmp_path / "run"):
        pass
    assert "cannot be locked (No locks available)" in capsys.readouterr().err
