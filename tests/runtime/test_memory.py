import ctypes
import subprocess
import sys

import pytest

from qmix_lightning.runtime.process_memory import MemoryPeak
from qmix_lightning.runtime.resources import keep_freed_memory
from support import runs


@pytest.fixture
def calls(monkeypatch):
    """What the C library would be told."""
    made = []

    class Library:
        def mallopt(self, *arguments):
            made.append(arguments)

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    return made


def test_freed_memory_is_kept(calls):
    keep_freed_memory()
    assert calls == [(-4, 0), (-1, 2**30)]


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_what_the_user_says_counts(calls, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    keep_freed_memory()
    assert calls == []


def test_a_library_without_it_is_left_alone(monkeypatch):
    asked: list[object] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda name: asked.append(name) or object())
    keep_freed_memory()
    assert asked == [None], "the process's own library, once"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
def test_glibc_takes_both():
    """In a process of its own: it is for good."""
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("not glibc")
    code = "import ctypes; m = ctypes.CDLL(None).mallopt; print(m(-4, 0), m(-1, 1 << 30))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["1", "1"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_process_does_not_grow_with_the_number_of_updates():
    """Of which each takes some ten megabytes while it lasts."""
    first, *later = map(int, runs.run([], "support.growth_script").split())
    assert len(later) == 3
    assert max(later) - first < 4 << 20


def test_the_memory_of_a_run_counts_its_processes():
    """A child that holds 200 MB is counted, and a sum that was larger once stays the peak."""
    memory = MemoryPeak()
    alone = memory.peak_mb
    hold = "import sys; held = bytearray(200_000_000); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        with_child = memory.peak_mb
        child.kill()
    assert with_child > alone + 190
    assert memory.peak_mb == with_child


def test_a_process_that_two_ranks_name_counts_once():
    memory = MemoryPeak()
    memory.add([{"a:1": 1e6, "a:2": 2e6}, {"a:2": 2e6}])
    assert memory.peak_mb == 3e6
