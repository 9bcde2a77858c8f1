"""Where the replay's rows lie: in memory that grows without a copy, or in a file."""

from __future__ import annotations

import errno
import mmap
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmix_lightning.errors import RunError
from qmix_lightning.replay import storage as replay_storage
from qmix_lightning.replay.episode_replay import EpisodeReplay
from qmix_lightning.replay.storage import PADDING_ROW, RowQueue
from support.episodes import episode, spec


def queue(**settings) -> RowQueue:
    return RowQueue(3, np.dtype(np.int16), **{"expected_rows": 1, **settings})


def play(rows: RowQueue, moves: list[tuple[int, int]]) -> None:
    """Append and release as told, and hold the queue against a list."""
    model, first = np.zeros((0, 3), np.int16), 0
    most = 0
    for added, released in moves:
        new = ((np.arange(3 * added) + 7 * len(model)) % 30011).astype(np.int16).reshape(-1, 3)
        assert rows.append(new) == len(model)
        model = np.concatenate([model, new])
        first = min(first + released, len(model))
        most = max(most, len(model) - rows.first)
        rows.release(first)
        held = np.arange(first, len(model))
        assert np.array_equal(rows.gather(held), model[first:])
        shuffled = np.random.default_rng(0).permutation(held).reshape(1, -1)
        assert np.array_equal(rows.gather(shuffled), model[shuffled])
        assert rows.nbytes < (most + 2 * rows.chunk_rows) * rows.row_bytes
    assert (rows.first, rows.end) == (first, len(model))
    assert np.array_equal(
        rows.gather(np.array([PADDING_ROW])), np.zeros((1, 3)) if rows._padding_row is None else [rows._padding_row]
    )


MOVES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 70)), max_size=40)


@settings(max_examples=80, deadline=None)
@given(moves=MOVES)
def test_a_queue_of_rows_equals_a_list(moves):
    play(queue(), moves)


@settings(max_examples=15, deadline=None)
@given(moves=MOVES)
def test_a_queue_in_a_file_equals_a_list(moves, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    play(queue(folder=folder, padding_row=np.array([7, 8, 9])), moves)
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems copy")
def test_memory_grows_without_a_copy():
    rows = queue()
    rows.append(np.ones((1000, 3), np.int16))
    first, size = rows._memory._map, len(rows._memory)
    rows.append(np.ones((500_000, 3), np.int16))
    assert rows._memory._map is first
    assert size < 10**5 < len(rows._memory) < 1.2 * rows.nbytes


def test_memory_that_cannot_be_extended_is_copied(monkeypatch: pytest.MonkeyPatch):
    class Stiff(mmap.mmap):
        def resize(self, size: int) -> None:
            raise SystemError("mmap: resizing not available--no mremap()")

    monkeypatch.setattr(replay_storage.mmap, "mmap", Stiff)
    rows = queue()
    play(rows, [(20_000, 0), (30_000, 100), (20_000, 5_000)])
    assert isinstance(rows._memory._map, Stiff)


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(RunError, match=re.escape(f"for which the disk at {tmp_path} has no room: [Errno 28] No space")):
        queue(folder=tmp_path).append(np.zeros((1, 3), np.int16))


def test_a_file_is_given_back_to_the_disk(tmp_path: Path):
    replay = EpisodeReplay(spec(), 3, folder=tmp_path)
    replay.add(episode(0, 5))
    files = [q._memory._file for q in (replay._steps, replay._obs, replay._state)]
    assert all(os.fstat(file).st_nlink == 0 for file in files)
    del replay
    for file in files:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(file)
