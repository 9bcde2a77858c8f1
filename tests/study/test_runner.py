"""Done is skipped, begun is resumed, missing is begun, failed is tried again, locked is left; and nothing raises."""

from __future__ import annotations

import contextlib
import fcntl
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from qmix_lightning.errors import RunError, RunInterrupted
from qmix_lightning.study import runner
from qmix_lightning.study.runner import Job, Outcome, Processes, run, run_all, state_of
from support.processes import runs, wait_until


def job_in(folder: Path, calls: list[str], *, done: Callable[[], bool] = lambda: False, fail: str = "") -> Job:
    """A job that notes what it was asked to do."""

    def train(resume: bool, lock: int) -> None:
        calls.append("resume" if resume else "begin")
        if fail:
            raise RunError(fail)

    return Job("a run", folder / "run", folder / "locks" / "a1", done, train, lambda lock: calls.append("finish"))


def leave(folder: Path, *, checkpoint: str = "", status: str = "") -> None:
    """What an earlier try left in the run's folder."""
    (folder / "run" / "checkpoints").mkdir(parents=True)
    if checkpoint:
        (folder / "run" / "checkpoints" / checkpoint).touch()
    if status:
        (folder / "run" / "summary.json").write_text(json.dumps({"status": status}))


@pytest.mark.parametrize(
    ("left", "asked"),
    [
        ({}, ["begin", "finish"]),
        ({"status": "running"}, ["begin", "finish"]),
        ({"checkpoint": "best.ckpt", "status": "running"}, ["begin", "finish"]),  # cannot be resumed
        ({"checkpoint": "last.ckpt", "status": "running"}, ["resume", "finish"]),
        ({"checkpoint": "last.ckpt", "status": "failed"}, ["resume", "finish"]),
        ({"checkpoint": "previous.ckpt"}, ["resume", "finish"]),
        ({"checkpoint": "last.ckpt", "status": "completed"}, ["finish"]),
        ({"checkpoint": "last.ckpt", "status": "stopped"}, ["finish"]),
    ],
)
def test_what_is_there_decides_what_is_done(tmp_path: Path, left: dict[str, str], asked: list[str]):
    leave(tmp_path, **left)
    calls: list[str] = []
    assert run(job_in(tmp_path, calls)).status == "made"
    assert calls == asked
    if asked[0] == "begin":
        assert not (tmp_path / "run").exists(), "a run refuses to begin in a folder with something in it"


def test_done_is_skipped(tmp_path: Path):
    calls: list[str] = []
    assert run(job_in(tmp_path, calls, done=lambda: True)) == Outcome("done")
    assert calls == []


def test_what_another_process_finished_meanwhile_is_not_done_again(tmp_path: Path):
    answers = iter([False, True])
    calls: list[str] = []
    assert run(job_in(tmp_path, calls, done=lambda: next(answers))).status == "done"
    assert calls == []


def test_what_is_locked_is_left(tmp_path: Path):
    (tmp_path / "locks").mkdir()
    calls: list[str] = []
    with open(tmp_path / "locks" / "a1", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert run(job_in(tmp_path, calls), patience_s=0).status == "locked"
    assert calls == []
    assert run(job_in(tmp_path, calls), patience_s=0).status == "made"


def test_locks_are_waited_for_once_not_for_each_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two commands that make one suite would else wait for each other at every run."""
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + seconds))
    monkeypatch.setattr(runner, "time", clock)
    with contextlib.ExitStack() as held:
        for number in range(3):
            (tmp_path / str(number) / "locks").mkdir(parents=True)
            file = held.enter_context(open(tmp_path / str(number) / "locks" / "a1", "w"))
            fcntl.flock(file, fcntl.LOCK_EX)
        jobs = [job_in(tmp_path / str(number), []) for number in range(3)]
        outcomes = run_all(jobs, 1, Processes(), lambda *_: None, patience_s=10.0)
    assert {outcome.status for outcome in outcomes} == {"locked"}
    assert now[0] == pytest.approx(10.0, abs=0.2)


def test_a_failure_is_an_outcome_and_is_tried_again(tmp_path: Path):
    calls: list[str] = []
    assert run(job_in(tmp_path, calls, fail="no luck")) == Outcome("failed", "no luck")
    assert run(job_in(tmp_path, calls)).status == "made"
    assert calls == ["begin", "begin", "finish"]


def test_an_unexpected_exception_is_an_outcome_too(tmp_path: Path):
    def broken() -> bool:
        raise ZeroDivisionError("by zero")

    assert run(job_in(tmp_path, [], done=broken)) == Outcome("failed", "ZeroDivisionError: by zero")


def test_one_failure_stops_no_other(tmp_path: Path):
    calls: list[str] = []
    jobs = [job_in(tmp_path / str(i), calls, fail="no luck" if i == 1 else "") for i in range(4)]
    told: list[int] = []
    outcomes = run_all(jobs, 2, Processes(), lambda number, job, outcome: told.append(number))
    assert [outcome.status for outcome in outcomes] == ["made", "failed", "made", "made"]
    assert sorted(told) == [0, 1, 2, 3]


def call(processes: Processes, folder: Path, code: str) -> None:
    """Run some code as a module of its own."""
    (folder / "some_module.py").write_text(code)
    with open(folder / "lock", "w") as lock:
        processes.call("some_module", [], folder / "log", lock.fileno())


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_a_process_that_fails_says_why_in_one_line(importable: Path):
    code = "import sys; print('error: it is broken', file=sys.stderr); print('more'); sys.exit(2)"
    with pytest.raises(RunError, match=r"^it is broken$"):
        call(Processes(), importable, code)
    with pytest.raises(RunError, match="ZeroDivisionError"):
        call(Processes(), importable, "1 / 0")


def test_what_a_process_prints_is_shown_by_whole_letters(importable: Path, capsys: pytest.CaptureFixture[str]):
    code = (
        "import sys, time\n"
        "for part in (b'7 \\xc2', b'\\xb1 1 \\xff', b'.'):\n"
        "    sys.stdout.buffer.write(part); sys.stdout.buffer.flush(); time.sleep(0.7)\n"
    )
    (importable / "some_module.py").write_text(code)
    with open(importable / "lock", "w") as lock:
        Processes().call("some_module", [], importable / "log", lock.fileno(), show=True)
    assert capsys.readouterr().out == "7 \u00b1 1 \ufffd."


def test_a_process_computes_with_one_thread_and_holds_the_lock(importable: Path):
    code = (
        "import fcntl, os\n"
        "assert os.environ['OMP_NUM_THREADS'] == '1'\n"
        "assert any(os.path.realpath(f'/proc/self/fd/{n}').endswith('/lock') for n in os.listdir('/proc/self/fd'))\n"
    )
    call(Processes(), importable, code)


def test_stopping_asks_those_that_run_and_begins_no_other(importable: Path):
    processes = Processes()
    raised: list[BaseException] = []
    code = (
        "import pathlib, signal, time\n"
        f"begun = pathlib.Path({str(importable / 'begun')!r})\n"
        "signal.signal(signal.SIGINT, lambda *_: begun.with_name('asked').touch() or exit(130))\n"
        "begun.touch()\n"
        "time.sleep(60)\n"
    )

    def one() -> None:
        try:
            call(processes, importable, code)
        except RunInterrupted as error:
            raised.append(error)

    thread = threading.Thread(target=one)
    thread.start()
    wait_until((importable / "begun").exists, "it does not begin")
    processes.stop(signal.SIGINT)
    thread.join(30)
    assert raised
    assert (importable / "asked").exists()
    with pytest.raises(RunInterrupted):
        call(processes, importable, "raise SystemExit(0)")


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux to be told")
def test_a_process_ends_with_its_parent_even_if_that_was_killed(importable: Path):
    (importable / "child.py").write_text(
        "import os, pathlib, time\n"
        f"pathlib.Path({str(importable / 'pid')!r}).write_text(str(os.getpid()))\n"
        "time.sleep(60)\n"
    )
    parent = (
        "import pathlib, os\n"
        "from qmix_lightning.study.runner import Processes\n"
        f"lock = os.open({str(importable / 'lock')!r}, os.O_RDWR | os.O_CREAT)\n"
        f"Processes().call('child', [], pathlib.Path({str(importable / 'log')!r}), lock)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", parent])
    pid = importable / "pid"
    wait_until(lambda: pid.exists() and pid.read_text(), "the child does not begin")
    process.kill()
    process.wait()
    wait_until(lambda: not runs(int(pid.read_text())), "the child outlived its parent")


def test_state_of_a_folder_that_is_not_there(tmp_path: Path):
    assert state_of(tmp_path / "none") == "missing"
    leave(tmp_path)
    (tmp_path / "run" / "summary.json").write_text("[")
    assert state_of(tmp_path / "run") == "missing"
