"""The replay's segments: written once, merged, verified, and removed when no checkpoint names them."""

import hashlib
import shutil
from unittest.mock import Mock

import pytest
import torch

from qmix_lightning.checkpoint import segments as segments_module
from qmix_lightning.checkpoint.files import read_checkpoint, write_checkpoint
from qmix_lightning.checkpoint.segments import SegmentStore, verify_segments
from qmix_lightning.errors import CheckpointError
from qmix_lightning.replay.episode_replay import EpisodeReplay
from support.checkpoints import Hostile, flip, grown, manifest, payload
from support.episodes import spec
from support.replays import content_hash


@pytest.fixture
def folder(tmp_path):
    """A run's ``checkpoints``; the run is looked through for checkpoints, so it has a folder of its own."""
    return tmp_path / "run" / "checkpoints"


def replay_bytes(replay):
    """What the episodes of a replay take as they are stored."""
    parts = replay.export(replay.first_id, replay.next_id)
    return b"".join(parts[name].numpy().tobytes() for name in ("steps", "obs", "state"))


def names(ckpts):
    return sorted(p.name for p in (ckpts / "replay").iterdir())


def test_segments_hold_the_replay(folder):
    store, replay = SegmentStore(folder, 0), EpisodeReplay(spec(), 10)
    for count in [3, 1, 5, 0, 4, 7]:
        segments = store.save(grown(replay, count))
        write_checkpoint(manifest(segments), folder / "last.ckpt")
        named = read_checkpoint(folder / "last.ckpt")
        verify_segments(named, folder)
        restored = EpisodeReplay(spec(), 10)
        SegmentStore(folder, 0).load(restored, named["ReplayDataModule"]["ranks"][0]["replay"])
        assert content_hash(restored) == content_hash(replay)
        assert torch.equal(restored.sample(3, 1).obs, replay.sample(3, 1).obs)


def test_segments_are_written_once(folder):
    store, replay = SegmentStore(folder, 0), EpisodeReplay(spec(), 100)
    seen = {}
    for _ in range(5):
        segments = store.save(grown(replay, 2))
        for path in (folder / "replay").iterdir():
            stamp = (path.stat().st_mtime_ns, path.stat().st_ino)
            assert seen.setdefault(path.name, stamp) == stamp
    assert len(seen) == len(segments) == 5
    assert [(s["first_id"], s["last_id"]) for s in segments] == [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]
    assert store.save(replay) == segments  # nothing new
    assert len(names(folder)) == 5


def test_segments_that_hold_only_what_left_are_not_named(folder):
    store, replay = SegmentStore(folder, 0), EpisodeReplay(spec(), 4)
    for count in [3, 3, 3]:
        segments = store.save(grown(replay, count))
    assert [(s["first_id"], s["last_id"], s["oldest_id"]) for s in segments] == [(3, 6, 5), (6, 9, 5)]
    segments = store.save(grown(replay, 50))
    assert [(s["first_id"], s["last_id"], s["oldest_id"]) for s in segments] == [(55, 59, 55)]


def test_many_segments_are_merged(folder):
    store, replay = SegmentStore(folder, 0), EpisodeReplay(spec(), 1000)
    for number in range(1, 33):
        assert len(store.save(grown(replay, 1))) == number
    segments = store.save(grown(replay, 1))
    assert [(s["first_id"], s["last_id"]) for s in segments] == [(0, 33)]
    assert len(store.save(grown(replay, 1))) == 2
    restored = EpisodeReplay(spec(), 1000)
    SegmentStore(folder, 0).load(restored, store.save(replay))
    assert content_hash(restored) == content_hash(replay)


def test_large_replays_are_written_in_parts(folder, monkeypatch):
    """No segment is larger than it may be, and only small ones are merged."""
    store, replay = SegmentStore(folder, 0), EpisodeReplay(spec(), 1000)
    each = len(replay_bytes(grown(EpisodeReplay(spec(), 1), 1)))
    monkeypatch.setattr(segments_module, "_SEGMENT_BYTES", 10 * each)
    monkeypatch.setattr(SegmentStore, "_is_small", lambda self, s: s["last_id"] - s["first_id"] < 5)
    segments = store.save(grown(replay, 37))
    sizes = [s["last_id"] - s["first_id"] for s in segments]
    assert sum(sizes) == 37
    assert 7 <= max(sizes[:-1]) <= 14  # some agents are dead, so episodes differ
    large = [s["name"] for s in segments[:-1]]
    for _ in range(2 * 32):
        segments = store.save(grown(replay, 1))
    assert len(segments) < 4 + 2 * 7 + 32
    assert [s["name"] for s in segments][: len(large)] == large
    restored = EpisodeReplay(spec(), 1000)
    SegmentStore(folder, 0).load(restored, segments)
    assert content_hash(restored) == content_hash(replay)


def test_a_resumed_store_goes_on_with_its_segments(folder):
    store, replay = SegmentStore(folder, 0), EpisodeReplay(spec(), 10)
    store.save(grown(replay, 3))
    segments = store.save(grown(replay, 3))
    resumed, restored = SegmentStore(folder, 0), EpisodeReplay(spec(), 10)
    resumed.load(restored, segments)
    more = resumed.save(grown(restored, 2))
    assert more[:2] == segments
    assert [(s["first_id"], s["last_id"]) for s in more] == [(0, 3), (3, 6), (6, 8)]


def test_going_on_in_another_folder_copies(folder):
    """The new folder is whole by itself; the old one stays as it was."""
    old, new = folder.parent / "old" / "checkpoints", folder.parent / "new" / "checkpoints"
    store, replay = SegmentStore(old, 0), EpisodeReplay(spec(), 10)
    segments = store.save(grown(replay, 3))
    before = names(old)
    resumed, restored = SegmentStore(new, 0, source=old), EpisodeReplay(spec(), 10)
    resumed.load(restored, segments)
    more = resumed.save(grown(restored, 1))
    write_checkpoint(manifest(more), new / "last.ckpt")
    resumed.collect_garbage()
    assert names(old) == before
    shutil.rmtree(old)
    again = EpisodeReplay(spec(), 10)
    SegmentStore(new, 0).load(again, more)
    assert content_hash(again) == content_hash(restored)


def test_garbage_is_what_no_checkpoint_names(folder):
    store, replay = SegmentStore(folder, 0), EpisodeReplay(spec(), 4)
    history = []
    for step in range(6):
        segments = store.save(grown(replay, 3))
        history.append({s["name"] for s in segments})
        write_checkpoint(manifest(segments, step), folder / "last.ckpt")
        store.collect_garbage()
        kept = history[-1] | (history[-2] if step else set())
        assert set(names(folder)) == kept
        for name in ("last.ckpt", "previous.ckpt") if step else ("last.ckpt",):
            verify_segments(read_checkpoint(folder / name), folder)


def test_a_checkpoint_is_read_for_garbage_once_also_by_its_next_name(folder, monkeypatch):
    reading = Mock(side_effect=read_checkpoint)
    monkeypatch.setattr(segments_module, "read_checkpoint", reading)
    store, replay = SegmentStore(folder, 0), EpisodeReplay(spec(), 4)
    for step in range(3):
        write_checkpoint(manifest(store.save(grown(replay, 3)), step), folder / "last.ckpt")
        store.collect_garbage()
    assert [call.args[0].name for call in reading.call_args_list] == ["last.ckpt"] * 3


def test_garbage_of_another_rank_is_left_to_it(folder):
    stores = [SegmentStore(folder, r) for r in (0, 1, 10)]
    for store in stores:
        store.save(grown(EpisodeReplay(spec(), 2), 2))
    assert len(names(folder)) == 3
    stores[0]._segments = []
    stores[0].collect_garbage()
    assert [n.split("-")[1] for n in names(folder)] == ["rank1", "rank10"]
    SegmentStore(folder, 1).collect_garbage()
    assert [n.split("-")[1] for n in names(folder)] == ["rank10"]


def test_garbage_stays_while_a_checkpoint_cannot_be_read(folder):
    store, replay = SegmentStore(folder, 0), EpisodeReplay(spec(), 2)
    store.save(grown(replay, 2))
    store.save(grown(replay, 2))
    (folder / "copy.ckpt").write_bytes(b"half a file")
    store.collect_garbage()
    assert len(names(folder)) == 2
    (folder / "copy.ckpt").unlink()
    store.collect_garbage()
    assert len(names(folder)) == 1


@pytest.mark.parametrize("kept", ["kept.ckpt", "../kept.ckpt", "deep/er/kept.ckpt"])
def test_a_copied_checkpoint_keeps_its_segments(folder, kept):
    """A user may keep any .ckpt by copying it."""
    store, replay = SegmentStore(folder, 0), EpisodeReplay(spec(), 2)
    for step in range(5):
        write_checkpoint(manifest(store.save(grown(replay, 2)), step), folder / "last.ckpt")
        if step == 1:
            (folder / kept).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / "last.ckpt", folder / kept)
        store.collect_garbage()
    verify_segments(read_checkpoint(folder / kept), folder)
    assert len(names(folder)) == 3


def broken(folder, change):
    store, replay = SegmentStore(folder, 0), EpisodeReplay(spec(), 9)
    segments = store.save(grown(replay, 2))
    change(segments, folder / "replay" / segments[0]["name"])
    return segments


@pytest.mark.parametrize("change", [flip, lambda _, path: path.unlink(), lambda _, path: path.write_bytes(b"")])
def test_a_damaged_segment_is_refused(folder, change):
    segments = broken(folder, change)
    with pytest.raises(CheckpointError, match="missing or does not match its checksum"):
        SegmentStore(folder, 0).load(EpisodeReplay(spec(), 9), segments)
    with pytest.raises(CheckpointError, match=r"that is gone|does not match its checksum"):
        verify_segments(manifest(segments), folder)


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/passwd", "replay-rank0-0-2-0123456789abcdef.pt/../../x", "", "x\nreplay-rank0-0-2-0.pt"]
)
def test_a_segment_lies_in_its_folder(folder, name):
    def rename(segments, path):
        segments[0]["name"] = name

    segments = broken(folder, rename)
    for read in (
        lambda: SegmentStore(folder, 0).load(EpisodeReplay(spec(), 9), segments),
        lambda: verify_segments(manifest(segments), folder),
    ):
        with pytest.raises(CheckpointError, match="is not the name of a replay segment"):
            read()


@pytest.mark.parametrize(
    "data",
    [
        "x",
        {"ranks": 3},
        {"ranks": [{}]},
        {"ranks": [{"replay": [{}]}]},
        {"ranks": [{"replay": [{"name": 1, "sha256": ""}]}]},
    ],
)
def test_a_made_up_list_of_segments_is_refused(folder, data):
    with pytest.raises(CheckpointError, match="list of replay segments is damaged"):
        verify_segments(payload(ReplayDataModule=data), folder)


def test_a_hostile_segment_runs_nothing(folder):
    trap = folder / "trap"
    path = folder / "replay" / f"replay-rank0-0-2-{'0' * 16}.pt"
    path.parent.mkdir(parents=True)
    torch.save({"lengths": Hostile(trap)}, path)
    segment = {
        "name": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "first_id": 0,
        "last_id": 2,
        "oldest_id": 0,
    }
    with pytest.raises(CheckpointError, match="was refused"):
        SegmentStore(folder, 0).load(EpisodeReplay(spec(), 9), [segment])
    assert not trap.exists()
