"""The checkpoint to go on from, and what a killed run leaves over."""

import shutil
from pathlib import Path

import pytest

from qmix_lightning.checkpoint.files import read_checkpoint, remove_leftovers, write_checkpoint
from qmix_lightning.checkpoint.resume import find_last
from qmix_lightning.checkpoint.segments import SegmentStore
from qmix_lightning.errors import CheckpointError
from qmix_lightning.replay.episode_replay import EpisodeReplay
from support.checkpoints import flip, grown, manifest, payload
from support.episodes import spec


def run_folder(tmp_path):
    """``previous.ckpt`` of step 1 and ``last.ckpt`` of step 2, with a ``best.ckpt`` that cannot be resumed."""
    folder = tmp_path / "checkpoints"
    store, replay = SegmentStore(folder, 0), EpisodeReplay(spec(), 9)
    for step in (1, 2):
        write_checkpoint(manifest(store.save(grown(replay, 2)), step, loops={}), folder / "last.ckpt")
    write_checkpoint(payload(9), folder / "best.ckpt")
    return folder


def test_the_newest_is_found(tmp_path):
    folder = run_folder(tmp_path)
    assert find_last(tmp_path)[0] == folder / "last.ckpt"
    shutil.copy(folder / "last.ckpt", folder / "aaa.ckpt")
    (folder / "previous.ckpt").touch()
    assert find_last(tmp_path)[0].name in ("last.ckpt", "aaa.ckpt")


@pytest.mark.parametrize("damage", ["cut", "empty", "segment"])
def test_a_damaged_newest_is_passed_over(tmp_path, damage):
    folder = run_folder(tmp_path)
    last = folder / "last.ckpt"
    if damage == "segment":
        newest = read_checkpoint(last)["ReplayDataModule"]["ranks"][0]["replay"][-1]["name"]
        flip(None, folder / "replay" / newest)
    else:
        last.write_bytes(last.read_bytes()[: 500 if damage == "cut" else 0])
    assert find_last(tmp_path)[0] == folder / "previous.ckpt"


def test_none_at_all(tmp_path):
    with pytest.raises(CheckpointError) as caught:
        find_last(tmp_path)
    assert str(caught.value) == f"no checkpoint in {tmp_path / 'checkpoints'}; name the folder of the run with run_dir="


def test_none_that_can_be_resumed_says_what_was_found(tmp_path):
    folder = run_folder(tmp_path)
    (folder / "last.ckpt").write_bytes(b"")
    for path in (folder / "replay").iterdir():
        path.unlink()
    with pytest.raises(CheckpointError) as caught:
        find_last(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"no checkpoint in {folder} can be resumed; ")
    assert f"{folder / 'last.ckpt'} is not a whole checkpoint" in message
    assert "names a replay segment that is gone" in message
    assert "\n" not in message


def test_leftovers_are_removed_and_nothing_else(tmp_path):
    folder = run_folder(tmp_path)
    before = {p for p in tmp_path.rglob("*") if p.is_file()}
    for name in ("last.ckpt.123.writing", "previous.ckpt.9.writing", "replay/rank0-0-2.pt.5.writing"):
        (folder / name).write_bytes(b"half")
    remove_leftovers(tmp_path)
    assert {p for p in tmp_path.rglob("*") if p.is_file()} == before
    remove_leftovers(Path(tmp_path / "nowhere"))
