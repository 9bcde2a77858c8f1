"""Make a run if it is not there yet: skip, resume, begin, try again or leave it; and many of them side by side."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qmix_lightning.errors import CheckpointError, ConfigurationError, RunError, RunInterrupted
from qmix_lightning.runtime.regular_files import read_json
from qmix_lightning.runtime.resources import CORES
from qmix_lightning.runtime.text import message_of, shortened

__all__ = ["THERE", "Job", "Outcome", "Processes", "failed_by", "read_summary", "run", "run_all", "state_of"]

State = Literal["finished", "begun", "missing"]


@dataclass(frozen=True)
class Job:
    """A run that is wanted.

    Attributes:
        name: what people call it.
        folder: where it writes.
        lock: file that is locked while it is being made, outside its folder.
        is_done: whether nothing is left to do, looked at before and after the lock is taken.
        train: make the run or, with ``True``, go on with it; raises if that fails. It is given the open lock, which a
            process that it starts should inherit: the run is locked as long as either lives.
        finish: what is done once the run has ended, again after each failure.
        on_wait: called once before another process, which has the lock, is waited for.
    """

    name: str
    folder: Path
    lock: Path
    is_done: Callable[[], bool]
    train: Callable[[bool, int], None]
    finish: Callable[[int], None] = lambda lock: None
    on_wait: Callable[[], None] = lambda: None


THERE = ("done", "made")
"""How a job ends whose run is there, by :attr:`Outcome.status`."""


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        status: ``done`` before, ``made`` now, ``failed``, ``locked`` by another process, or ``stopped`` by a signal.
        message: one line, why it is not there.
        seconds: it took.
        invalid: it failed since what was asked for does not exist or fit.
    """

    status: Literal["done", "made", "failed", "locked", "stopped"]
    message: str = ""
    seconds: float = 0.0
    invalid: bool = False


def run(job: Job, patience_s: float = 10.0) -> Outcome:
    """Make a run: done is skipped, begun is resumed, missing is begun, failed is tried again, locked is left.

    Never raises an :class:`Exception`: a study goes on without the run.

    Args:
        job: what to make.
        patience_s: how long to wait for a lock: the runs of a study that was killed need a moment to end.
    """
    started = time.monotonic()
    try:
        if job.is_done():
            return Outcome("done")
        with _lock(job.lock, patience_s, job.on_wait) as lock:
            if lock is None:
                return Outcome("locked", "another process is making it")
            if job.is_done():
                return Outcome("done")
            state = state_of(job.folder)
            if state == "missing" and job.folder.exists():
                shutil.rmtree(job.folder)  # what a run that was killed before its first checkpoint left
            if state != "finished":
                job.train(state == "begun", lock)
            job.finish(lock)
    except RunInterrupted as error:
        return Outcome("stopped", str(error))
    except Exception as error:
        return failed_by(error)
    return Outcome("made", seconds=time.monotonic() - started)


def failed_by(error: Exception) -> Outcome:
    """Return the outcome of a job that an error ended."""
    return Outcome("failed", shortened(message_of(error), 500), invalid=isinstance(error, ConfigurationError))


def read_summary(folder: Path) -> dict[str, Any]:
    """Return a run's ``summary.json``; empty if there is none that can be read."""
    try:
        content = read_json(folder / "summary.json")
    except CheckpointError:
        return {}
    return content if isinstance(content, dict) else {}


def state_of(folder: Path) -> State:
    """Return how far the run in a folder is, by its ``summary.json`` and its checkpoints."""
    if read_summary(folder).get("status") in ("completed", "stopped"):
        return "finished"
    resumable = any((folder / "checkpoints" / name).is_file() for name in ("last.ckpt", "previous.ckpt"))
    return "begun" if resumable else "missing"


@contextlib.contextmanager
def _lock(path: Path, patience_s: float, on_wait: Callable[[], None]) -> Generator[int | None]:
    """Lock a file and yield its descriptor; ``None`` if another one has it. ``on_wait`` is called before waiting."""
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience_s
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    waits = False
    try:
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if time.monotonic() >= deadline:
                yield None
                return
            if not waits:
                on_wait()
            waits = True
            time.sleep(0.1)
        yield descriptor
    finally:
        os.close(descriptor)


def run_all(
    jobs: Sequence[Job],
    side_by_side: int,
    processes: Processes,
    tell: Callable[[int, Job, Outcome], None],
    patience_s: float = 10.0,
) -> list[Outcome]:
    """Make runs, some side by side; on Ctrl-C or SIGTERM those that run are saved and end before it is raised.

    Args:
        jobs: in the order in which they are begun.
        side_by_side: how many at once.
        processes: that the jobs start.
        tell: called with the number, the job and its outcome when it has ended, one at a time.
        patience_s: from now on, how long to wait for locks. One that is held later is another study's at work.
    """
    telling, deadline = threading.Lock(), time.monotonic() + patience_s

    def one(number: int, job: Job) -> Outcome:
        left_s = max(0.0, deadline - time.monotonic())
        outcome = Outcome("stopped") if processes.stopping else run(job, left_s)
        with telling:
            tell(number, job, outcome)
        return outcome

    with ThreadPoolExecutor(side_by_side) as pool:
        waiting = [pool.submit(one, number, job) for number, job in enumerate(jobs)]
        try:
            return [future.result() for future in waiting]
        except BaseException as stop:
            processes.stop(signal.SIGINT if isinstance(stop, KeyboardInterrupt) else signal.SIGTERM)
            try:
                wait(waiting)
            except KeyboardInterrupt:  # once more: at once
                processes.stop(signal.SIGKILL)
            raise


_WITH_ITS_PARENT = """
import ctypes, os, sys
parent, *command = sys.argv[1:]
try:
    ctypes.CDLL(None).prctl(1, 15)  # PR_SET_PDEATHSIG, SIGTERM; it outlives exec
except (OSError, AttributeError):
    pass  # not Linux: the lock says that it still runs
if os.getppid() == int(parent):
    os.execv(command[0], command)
"""
"""Runs a command that is asked to end when its parent is gone, killed or not.

Linux means the parent's thread: the one that starts a process has to wait for it, too.
"""


class Processes:
    """Child processes of this one, which end when they are told to or when it is gone."""

    def __init__(self) -> None:
        self.stopping: int = 0
        self._running: set[subprocess.Popen[bytes]] = set()
        self._guard = threading.Lock()

    def call(
        self,
        module: str,
        arguments: Iterable[str],
        log: Path,
        lock: int,
        *,
        threads: int | None = 1,
        show: bool = False,
    ) -> None:
        """Run ``python -m module arguments``, and wait for it.

        Args:
            module: with a ``main``.
            arguments: of the command.
            log: file that gets what it prints.
            lock: open descriptor that it inherits.
            threads: of its numerical libraries, and the cores that it takes to be its own; ``None``: as it finds them.
            show: print what it prints, too.

        Raises:
            RunInterrupted: it was stopped.
            RunError: it ended with another status than 0; has the line with which it said why.
        """
        command = [sys.executable, "-W", "ignore", "-m", module, *arguments]
        limits = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", CORES)
        environment = os.environ | ({name: str(threads) for name in limits} if threads is not None else {})
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as output:
            begun = output.tell()
            with self._guard:
                if self.stopping:
                    raise RunInterrupted(self.stopping)
                process = subprocess.Popen(
                    [sys.executable, "-S", "-E", "-c", _WITH_ITS_PARENT, str(os.getpid()), *command],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    pass_fds=[lock],
                    start_new_session=True,  # a terminal's Ctrl-C reaches this process, which passes it on once
                )
                self._running.add(process)
            status = _follow(process, log, begun) if show else process.wait()
            with self._guard:
                self._running.discard(process)
        if self.stopping:
            raise RunInterrupted(self.stopping)
        if status:
            raise RunError(_last_words(log, begun) or f"ended with status {status}")

    def stop(self, number: int) -> None:
        """Send a signal to all of them; none is started any more."""
        with self._guard:
            self.stopping = number
            for process in self._running:
                process.send_signal(number)


def _follow(process: subprocess.Popen[bytes], log: Path, begun: int) -> int:
    """Wait for a process and print what it adds to its log; return its status.

    The process writes to the file and not to a pipe: it can still save what it has if this one is killed.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")  # half of a letter may be there
    with open(log, "rb") as file:
        file.seek(begun)
        ended = False
        while True:
            with contextlib.suppress(BrokenPipeError):
                sys.stdout.write(decoder.decode(file.read(), final=ended))
                sys.stdout.flush()
            if ended:
                return process.returncode
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.2)
                ended = True


def _last_words(log: Path, begun: int) -> str:
    """Return the last error, or the last line, of what a process printed after ``begun`` bytes of its log."""
    with open(log, "rb") as file:
        file.seek(max(begun, log.stat().st_size - 20_000))
        lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return next(reversed(errors), lines[-1] if lines else "")
