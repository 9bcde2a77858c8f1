"""Run a task under Hydra, print one line for each error, and return the exit status.

Nothing here imports torch, so ``--help`` and a typing mistake answer at once.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Protocol

from qmix_lightning import __version__
from qmix_lightning.cli.compose import settings_of_job
from qmix_lightning.cli.help import help_of
from qmix_lightning.cli.messages import explain_hydra
from qmix_lightning.cli.overrides import is_sweep, prepare_overrides, register_plugin_names, sweep_parts
from qmix_lightning.errors import ConfigurationError, QMixLightningError, RunError, RunInterrupted
from qmix_lightning.runtime.launch import launched_by
from qmix_lightning.runtime.signals import end_with_parent
from qmix_lightning.runtime.text import error_line, on_one_line, shortened, shown_path
from qmix_lightning.worker.import_path import look_in

__all__ = [
    "RANK_CONFIG",
    "THREAD_PATIENCE_S",
    "import_from_here",
    "run_command",
    "run_under_hydra",
    "run_without_hydra",
    "status_of",
]


RANK_CONFIG = "QMIX_LIGHTNING_RANK_CONFIG"
"""Names the resolved configuration for ranks above 0: reading the command line again would start another sweep."""


def import_from_here() -> None:
    """Let ``env.id=my_module:make`` and ``_target_`` name files of the working folder, as ``python -m`` does.

    The folder is put last, so that nothing installed is shadowed; worker processes inherit the path.
    """
    if not sys.flags.safe_path:
        look_in([] if "" in sys.path else [os.getcwd()])


Task = Callable[[dict[str, Any], Path, "list[str] | None"], object]
"""``task(configuration, output folder, what was typed)``; ``None`` for a rank that receives its configuration."""


def _flush_output() -> None:
    """Write out what was printed; nobody may be there to read it, which is no failure."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # the interpreter would try again, and end with a status and a line of its own
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str) -> None:
    _flush_output()  # an error is the last line, also where both go to one file
    print(f"error: {message}", file=sys.stderr, flush=True)


THREAD_PATIENCE_S = 30.0
"""How long a command waits at its end for threads that were left behind."""

_FULL_ERROR = "HYDRA_FULL_ERROR"

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def _on_early_sigterm(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


Composed = Callable[[], tuple[dict[str, Any], list[str]]]
"""Returns a job's configuration and what was typed for it; raises where they do not fit."""


class SweepJobs(Protocol):
    """What runs the jobs of a sweep, in whichever process a launcher starts them."""

    def job(self, compose: Composed) -> Any:
        """Run one job and return what the sweeper wants to know; never raises an :class:`Exception`."""

    def end(self) -> None:
        """Sum up, and raise if something is missing."""


BeginSweep = Callable[[Path, Sequence[str], Sequence[str]], SweepJobs]
"""``begin(folder, Hydra's flags, overrides that all jobs share)``."""


def run_command(config_name: str, task: Task, begin_sweep: BeginSweep | None = None) -> None:
    """Run ``task(config, output folder, overrides)`` under Hydra and exit with its status.

    Status 0: done; 1: failed while running; 2: something asked for does not exist or fit; 130 and 143: ended by
    Ctrl-C or SIGTERM. A traceback is printed only if the user set ``HYDRA_FULL_ERROR=1``.
    """
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # torchmetrics imports it, and it logs its font cache
    _run(lambda: run_under_hydra(config_name, task, begin_sweep), config_name)


def run_without_hydra(command: Callable[[list[str]], None]) -> None:
    """Run a command on what was typed, which Hydra does not compose, and exit with its status."""
    _run(lambda: command(sys.argv[1:]), "train")


def _run(command: Callable[[], None], config_name: str) -> NoReturn:
    def with_imports() -> None:
        import_from_here()
        command()

    _leave(status_of(with_imports, config_name))


def _leave(status: int) -> NoReturn:
    """Exit; threads that an environment or a logger has left behind are waited for, but not without end."""
    deadline = time.monotonic() + THREAD_PATIENCE_S
    for thread in threading.enumerate():
        if thread.daemon or thread is threading.current_thread():
            continue
        try:
            thread.join(max(0.0, deadline - time.monotonic()))
        except (KeyboardInterrupt, SystemExit):
            deadline = 0.0
        if thread.is_alive():
            print(f"ended without '{thread.name}', a thread that was started here and not ended", file=sys.stderr)
            _flush_output()
            os._exit(status)
    sys.exit(status)


def run_under_hydra(config_name: str, task: Task, begin_sweep: BeginSweep | None = None) -> None:
    """Compose the configuration of ``config_name`` and run ``task`` with it; or the jobs of a sweep, each by itself."""
    if {"--help", "-h"} & {*sys.argv[1:]}:
        print(help_of(config_name, sys.argv[1:]))
        return
    if os.environ.get("LOCAL_RANK", "0") != "0" and (rank_config := os.environ.get(RANK_CONFIG)):
        from omegaconf import OmegaConf

        end_with_parent()
        tree = OmegaConf.to_container(OmegaConf.load(rank_config))
        assert isinstance(tree, dict)
        task({str(k): v for k, v in tree.items()}, Path(rank_config).parent, None)
        return

    if launched_by() == "torchrun":
        end_with_parent()  # else a killed torchrun leaves its ranks behind
    import hydra
    from hydra.errors import HydraException
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    register_plugin_names()
    sys.argv[1:] = prepare_overrides(sys.argv[1:], config_name)

    new_folders, was_there = _missing_folders(sys.argv[1:])
    sweep = begin_sweep(*sweep_parts(sys.argv[1:])) if begin_sweep and is_sweep(sys.argv[1:]) else None
    unread = contextlib.nullcontext() if begin_sweep else _jobs_elsewhere()
    started: list[Path] = []
    failures: list[Exception] = []
    skipped: list[Path] = []
    asked = os.environ.get(_FULL_ERROR)

    def compose(config: DictConfig, folder: Path) -> tuple[dict[str, Any], list[str]]:
        if config_name == "train":
            config.run_dir = shown_path(folder)
        return settings_of_job(config)

    @_full_error(asked)  # processes that a job starts inherit what the user has set, not what Hydra is told below
    def job(config: DictConfig) -> Any:
        from hydra.core.hydra_config import HydraConfig

        folder = Path(HydraConfig.get().runtime.output_dir)
        if sweep is not None:
            import_from_here()
            return sweep.job(lambda: compose(config, folder))
        started.append(folder)
        if failures:
            skipped.append(folder)
            return None  # a sweep ends at its first failure, as Hydra's own do
        try:
            tree, typed = compose(config, folder)
            task(tree, folder, typed)
        except (Exception, SystemExit) as raised:
            error = _as_error(raised)
            if not str(HydraConfig.get().launcher._target_).endswith("BasicLauncher"):
                raise error from raised.__cause__  # the job runs in another process
            failures.append(error)  # Hydra would add lines of its own to the message
        return None

    try:
        with unread, _mode_by_flag(), _full_error("1"):  # so that errors reach status_of instead of ending in Hydra
            hydra.main(config_path="pkg://qmix_lightning.conf", config_name=config_name, version_base="1.3")(job)()
        if sweep is not None:
            sweep.end()
    except (HydraException, OmegaConfBaseException, BrokenPipeError):
        raise
    except (KeyboardInterrupt, SystemExit) as stop:
        if sweep is None:
            raise
        number = signal.SIGINT if isinstance(stop, KeyboardInterrupt) else signal.SIGTERM
        raise RunInterrupted(number, "; what was begun is saved: the same command goes on") from stop
    except (ValueError, OSError, YAMLError) as error:
        if started or sweep is not None:
            raise
        # Hydra refuses some choices, reads files and makes the run folder without exceptions of its own.
        what = "run_dir cannot be made: " if isinstance(error, OSError) else ""
        raise ConfigurationError(what + on_one_line(error)) from error
    finally:
        _remove_empty([folder for folder in started if folder != was_there], new_folders)
    if failures:
        if skipped:
            which = f"job #{len(started) - len(skipped) - 1} of the sweep; the {len(skipped)} after it were not run"
            failures[0].args = (f"{failures[0]} ({which})",)
        raise failures[0]


@contextlib.contextmanager
def _mode_by_flag() -> Generator[None]:
    """Let ``-m`` alone decide whether there are several jobs.

    Hydra would compose everything once more to look for ``hydra.mode``: half of the time until a mistake is told.
    """
    from hydra._internal.hydra import Hydra

    def no_mode(self: Hydra, config_name: str | None, overrides: list[str]) -> Any:
        return None

    before, Hydra.get_mode = Hydra.get_mode, no_mode
    try:
        yield
    finally:
        Hydra.get_mode = before


@contextlib.contextmanager
def _full_error(value: str | None) -> Generator[None]:
    """Set HYDRA_FULL_ERROR, or remove it, for a while."""
    before = os.environ.get(_FULL_ERROR)
    _set_full_error(value)
    try:
        yield
    finally:
        _set_full_error(before)


def _set_full_error(value: str | None) -> None:
    os.environ.pop(_FULL_ERROR, None)
    if value is not None:
        os.environ[_FULL_ERROR] = value


@contextlib.contextmanager
def _jobs_elsewhere() -> Generator[None]:
    """Let Hydra write what it writes for a sweep where it is removed again: no job but those of training reads it."""
    if not is_sweep(sys.argv[1:]) or any(argument.startswith("hydra.sweep.dir=") for argument in sys.argv):
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        sys.argv.append(f"hydra.sweep.dir={folder}")
        yield


def _as_error(raised: Exception | SystemExit) -> Exception:
    """Return the error that a job ended with; what ends the process, whoever asked for it, is raised again."""
    if isinstance(raised, BrokenPipeError):
        return RunError("what reads this command's output has gone, so the run was ended")
    if not isinstance(raised, SystemExit):
        return raised
    if isinstance(raised.__context__, KeyboardInterrupt):  # Lightning ends with status 1 where it sees a Ctrl-C
        raise KeyboardInterrupt from None
    if raised.code == 128 + signal.SIGTERM:
        raise raised
    return RunError(f"something in this process called sys.exit({raised.code!r}): an environment?")


def _missing_folders(arguments: list[str]) -> tuple[list[Path], Path | None]:
    """Return which of the run folder and those above it do not exist yet, innermost first.

    And the run folder, if it was typed and is there: it is the user's, and stays, though it may be empty.
    """
    typed = [a.partition("=")[2].strip("'\"") for a in arguments if a.startswith("run_dir=")]
    text = (typed or ["outputs/"])[-1]
    known = Path(text.split("${")[0]).absolute()
    was_there = known if typed and "${" not in text and known.exists() else None
    return [path for path in (known, *known.parents) if not path.exists()], was_there


def _remove_empty(jobs: list[Path], above: list[Path]) -> None:
    """Remove what Hydra made before anything was checked, where nothing else was written."""
    for folder in [*jobs, *above]:
        if not folder.is_dir() or folder.samefile(Path.cwd()):
            continue
        content = [path.name for path in folder.iterdir()]
        if folder in above and content == ["multirun.yaml"]:
            (folder / "multirun.yaml").unlink()
            content = []
        if not content:
            folder.rmdir()


def _open_streams() -> None:
    """Open what a service has started this without: else a file that is opened later gets all that is printed."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _require_working_folder() -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        raise ConfigurationError("the working folder was removed: change to one that is there") from None


def status_of(command: Callable[[], None], config_name: str) -> int:
    """Run ``command`` and return its exit status; an error is printed in one line. ``--version`` is answered here."""
    if "--version" in sys.argv[1:]:
        print(f"qmix-lightning {__version__}")
        return 0
    full_error = os.environ.get(_FULL_ERROR) == "1"
    signal.signal(signal.SIGTERM, _on_early_sigterm)
    _open_streams()
    try:
        _require_working_folder()
        command()
    except BrokenPipeError:  # the reader has seen enough: --help | head
        return 0
    except QMixLightningError as error:
        if full_error and not error.exit_status > 128:
            traceback.print_exc()
        if str(error):  # else another process of the run prints it
            _fail(str(error))
        return error.exit_status
    except KeyboardInterrupt:
        _fail("stopped by Ctrl-C")
        return 128 + signal.SIGINT
    except SystemExit as stop:
        if stop.code == 128 + signal.SIGTERM:  # before there was a run to save
            _fail("stopped by SIGTERM")
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException as error:  # an environment may raise what is no Exception
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        if full_error:
            traceback.print_exc()
        if isinstance(error, (HydraException, OmegaConfBaseException)):
            _fail(explain_hydra(error, config_name))
            return ConfigurationError.exit_status
        if isinstance(error, OSError) and error.filename and error.strerror:  # it says all that there is to know
            _fail(f"{error.filename2 or error.filename}: {error.strerror}")
            return 1
        if isinstance(error, OSError) and error.errno in _DISK:  # a write that was begun knows no name any more
            _fail(f"a file could not be written: {error.strerror}")
            return 1
        _fail(f"{shortened(error_line(error), 1000)} (HYDRA_FULL_ERROR=1 shows where)")
        return 1
    finally:
        _flush_output()
    return 0
