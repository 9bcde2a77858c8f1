"""What a process started ends with it, wherever it has gone."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from qmix_lightning.worker import supervisor
from qmix_lightning.worker.supervisor import FAMILY, end_family, family_members
from support.processes import running, runs, wait_until

SCRIPT = """
import subprocess, sys, time
from {module} import supervise
supervise(); supervise()
sleep = [sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"]
child = subprocess.Popen(sleep, start_new_session=True, stdout=subprocess.DEVNULL)
print(child.pid, flush=True)
{then}
"""


def start(
    then: str, module: str = supervisor.__name__, folder: Path | None = None
) -> tuple[subprocess.Popen[str], int]:
    """Start what supervises itself by ``module``, which may lie in ``folder``; returns the process and its child."""
    code = SCRIPT.format(module=module, then=then)
    process = subprocess.Popen([sys.executable, "-c", code], cwd=folder, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def test_a_child_with_a_session_of_its_own_ends_soon_after_its_parent_is_killed(tmp_path: Path):
    """By the program as it is, but for the seconds that each child is given to end by itself."""
    program, times = re.subn(r"(?m)^_GRACE_S = .*$", "_GRACE_S = 0.3", Path(supervisor.__file__).read_text())
    assert times == 1
    (tmp_path / "hurried.py").write_text(program)
    children = []
    for number in (signal.SIGKILL, signal.SIGSEGV):
        process, child = start("time.sleep(600)", "hurried", tmp_path)
        children.append(child)
        os.kill(process.pid, number)
        process.communicate()
    wait_until(lambda: not any(map(runs, children)), "a child outlived its parent", 30)


def test_a_process_that_ends_by_itself_takes_its_supervisor_along_and_nothing_else():
    process, child = start("")
    try:
        process.communicate(timeout=60)
        assert process.returncode == 0
        assert runs(child)  # its own to end; closing an environment does
        assert not any("supervisor.py" in one.command and str(process.pid) in one.command for one in running())
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_family_is_ended_by_its_name_and_others_are_left_alone():
    started = [
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env={**os.environ, FAMILY: names})
        for names in ("first:second", "second", "third", "seconds")
    ]
    try:
        wait_until(lambda: len(family_members("second")) == 2, "they do not start", 10)
        assert set(family_members("second")) == {started[0].pid, started[1].pid}
        end_family("second")
        assert [p.wait(10) for p in started[:2]] == [-signal.SIGKILL] * 2
        assert [p.poll() for p in started[2:]] == [None, None]
    finally:
        for process in started:
            process.kill()
            process.wait()
