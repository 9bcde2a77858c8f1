"""Settings of every test."""

import gc
import os
import tempfile
from multiprocessing import forkserver
from pathlib import Path

import pytest

from support import commands

# JAX compiles each environment for some steps only: without LLVM's expensive passes in two thirds of the time, and once
# for all processes of the tests, which inherit where the result is.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")
_COMPILED = "JAX_COMPILATION_CACHE_DIR"
_made = None if _COMPILED in os.environ else tempfile.TemporaryDirectory(prefix="compiled")
if _made:
    os.environ[_COMPILED] = _made.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

# Gymnasium sets it when it is first imported: perhaps within a test, behind which the environment is as before.
os.environ["PYGAME_HIDE_SUPPORT_PROMPT"] = "hide"

# What is imported and collected stays, a million objects: the collector looks through them in every test, for nothing.
gc.disable()


LONGEST = ("tests/end_to_end/", "tests/vector/test_process.py", "tests/rollout/", "tests/envs/", "tests/env_checker/")
"""Folders and files whose tests start processes, or compile."""


def pytest_configure(config: pytest.Config) -> None:
    """Files go to xdist's processes in their order: its own ends with those of few tests, which are the longest."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files: none of them is left for one process when the others have nothing more to do."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))


def pytest_collection_finish() -> None:
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def _what_is_there_stays():
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Several test processes on few cores: more threads are slower, and sums would depend on their number."""
    import torch  # here, since xdist's own process runs no test, and the others begin when it has imported this file

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _no_disk_is_waited_for():
    """What was written outlives every kill without it, and no test cuts the power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _hydra_is_quick():
    from support import quick_hydra

    with pytest.MonkeyPatch.context() as patch:
        quick_hydra.quicken(patch.setattr)
        yield


@pytest.fixture(scope="session", autouse=True)
def _collectors_and_workers_are_forks_of_what_has_imported_torch():
    """Those that a test starts itself; a command's own import what they need, as a user's do."""
    set_preload = forkserver.set_forkserver_preload

    def start(names: list[str]) -> None:
        set_preload([*names, "support.preloaded"])
        with pytest.MonkeyPatch.context() as while_it_starts:
            while_it_starts.setenv("PYTHONPATH", commands.environ()["PYTHONPATH"])  # where ``support`` is
            forkserver.ensure_running()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forkserver, "set_forkserver_preload", start)
        yield


@pytest.fixture(scope="session", autouse=True)
def _commands_end():
    """What commands are forked from ends with the tests."""
    yield
    commands.stop_server()


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the two-step game, of thirty updates; who changes something takes a copy."""
    from support import inprocess

    folder = tmp_path_factory.mktemp("finished") / "run"
    inprocess.succeed([f"run_dir={folder}", *inprocess.TINY])
    return folder
