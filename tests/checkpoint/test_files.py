import hashlib
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

from qmix_lightning.checkpoint import files as checkpoint
from qmix_lightning.checkpoint import segments as segments_module
from qmix_lightning.checkpoint.files import FORMAT, RunCheckpointIO, read_checkpoint, remove_leftovers, write_checkpoint
from qmix_lightning.checkpoint.resume import find_last
from qmix_lightning.checkpoint.segments import SegmentStore, verify_segments
from qmix_lightning.errors import CheckpointError, ConfigurationError, RunError
from qmix_lightning.replay.episode_replay import EpisodeReplay
from support.checkpoints import Hostile, grown, manifest, payload
from support.episodes import spec


def refused(path):
    """The one line that a checkpoint is refused with."""
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


# Reading --------------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "new" / "folder" / "last.ckpt"
    write_checkpoint(payload(3), path)
    got = read_checkpoint(path)
    assert got["format"] == FORMAT
    assert torch.equal(got["state_dict"]["w"], torch.arange(6.0))
    assert got["config"] == payload()["config"]
    assert (got["env_steps"], got["global_step"]) == (30, 3)
    assert os.listdir(path.parent) == ["last.ckpt"]


def test_an_error_of_the_users():
    assert issubclass(CheckpointError, ConfigurationError)
    assert CheckpointError.exit_status == 2


def test_missing(tmp_path):
    assert refused(tmp_path / "no.ckpt") == f"there is no checkpoint at {tmp_path / 'no.ckpt'}"


def test_a_folder(tmp_path):
    assert refused(tmp_path) == f"{tmp_path} is a folder; name a .ckpt file in it"


@pytest.mark.parametrize(
    "contents", [b"", b"hello\nworld", b"\x80\x04K\x01.", bytes(range(256)) * 20, b"PK\x05\x06" + bytes(18)]
)
def test_not_a_checkpoint(tmp_path, contents):
    path = tmp_path / "x.ckpt"
    path.write_bytes(contents)
    assert str(path) in refused(path)


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        ({"state_dict": {}}, "is not a checkpoint of qmix-lightning"),  # e.g. Lightning's own
        ([1, 2], "is not a checkpoint of qmix-lightning"),
        (torch.zeros(3), "is not a checkpoint of qmix-lightning"),
        ({"format": "qmix-lightning/99"}, "has format 'qmix-lightning/99'; this version reads 'qmix-lightning/1'"),
        ({"format": FORMAT, "config": {}}, "lacks state_dict, spec, env_steps, global_step"),
    ],
)
def test_a_foreign_file(tmp_path, contents, reason):
    path = tmp_path / "x.ckpt"
    torch.save(contents, path)
    assert reason in refused(path)


def test_the_old_format_of_torch_is_refused(tmp_path):
    path = tmp_path / "x.ckpt"
    torch.save({"format": FORMAT, **payload()}, path, _use_new_zipfile_serialization=False)
    refused(path)


def test_truncated_anywhere(tmp_path):
    path = tmp_path / "x.ckpt"
    write_checkpoint(payload(), path)
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 37), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert str(path) in refused(path)


def test_a_flipped_bit_is_noticed_wherever_it_matters(tmp_path):
    """Either the file is refused, or what it holds is unchanged (a date in the archive, say)."""
    path = tmp_path / "x.ckpt"
    write_checkpoint(payload(), path)
    whole, good = path.read_bytes(), repr(read_checkpoint(path))
    rng = random.Random(3)
    directory = whole.index(b"PK\x01\x02")  # the archive's directory, which has no checksum of its own
    bits = [(rng.randrange(directory), rng.randrange(8)) for _ in range(200)]
    bits += [(rng.randrange(directory, len(whole)), rng.randrange(8)) for _ in range(600)]
    # The bit that marks an entry as a folder: torch then returns memory as it finds it.
    entry = directory
    while whole[entry : entry + 4] == b"PK\x01\x02":
        bits.append((entry + 38, 4))
        entry += 46 + sum(int.from_bytes(whole[entry + n : entry + n + 2], "little") for n in (28, 30, 32))
    assert len(bits) > 800 + 4
    bad = 0
    for i, bit in bits:
        changed = bytearray(whole)
        changed[i] ^= 1 << bit
        path.write_bytes(changed)
        try:
            assert repr(read_checkpoint(path)) == good, f"bit {bit} of byte {i}"
        except CheckpointError:
            bad += 1
    assert bad > 300


class Shell(Hostile):
    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("kind", [Hostile, Shell])
def test_a_hostile_checkpoint_runs_nothing(tmp_path, kind):
    trap, path = tmp_path / "trap", tmp_path / "x.ckpt"
    write_checkpoint(payload(extra=kind(trap)), path)
    assert refused(path) == f"{path} was refused: it holds more than tensors and plain values"
    plain = tmp_path / "plain.ckpt"
    plain.write_bytes(pickle.dumps(kind(trap)))
    refused(plain)
    assert not trap.exists()
    with zipfile.ZipFile(path) as archive:  # the trap works where it is not guarded against
        name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
        assert trap.name.encode() in archive.read(name)


def test_made_up_contents_are_refused_in_one_line(tmp_path):
    """An archive whose checksums hold, with a damaged pickle: whatever torch raises, the user sees one line."""
    path = tmp_path / "x.ckpt"
    write_checkpoint(payload(), path)
    with zipfile.ZipFile(path) as archive:
        parts = {n: archive.read(n) for n in archive.namelist()}
    (name,) = (n for n in parts if n.endswith("data.pkl"))
    rng = random.Random(1)
    said: list[str] = []
    for _ in range(400):
        changed = bytearray(parts[name])
        for _ in range(rng.choice([1, 2, 5])):
            changed[rng.randrange(2, len(changed))] = rng.randrange(256)
        with zipfile.ZipFile(path, "w") as archive:
            for n, data in parts.items():
                archive.writestr(n, bytes(changed) if n == name else data)
        try:
            read_checkpoint(path)
        except CheckpointError as error:
            said.append(str(error))
    assert len(said) > 200
    assert not any("\n" in message for message in said)


# Writing --------------------------------------------------------------------------------------------------------------


def test_last_keeps_one_before_it(tmp_path):
    path = tmp_path / "last.ckpt"
    for step in range(3):
        write_checkpoint(payload(step), path)
    assert sorted(os.listdir(tmp_path)) == ["last.ckpt", "previous.ckpt"]
    assert read_checkpoint(path)["global_step"] == 2
    assert read_checkpoint(tmp_path / "previous.ckpt")["global_step"] == 1


def test_best_keeps_none(tmp_path):
    for step in range(2):
        write_checkpoint(payload(step), tmp_path / "best.ckpt")
    assert os.listdir(tmp_path) == ["best.ckpt"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "last.ckpt"
    write_checkpoint(payload(1), path)
    with pytest.raises((AttributeError, pickle.PicklingError)):
        write_checkpoint(payload(2, extra=lambda: None), path)
    assert read_checkpoint(path)["global_step"] == 1
    assert not [n for n in os.listdir(tmp_path) if n.endswith(".writing")]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a device that is always full")
def test_a_full_disk_is_named_and_the_old_file_stays(tmp_path, monkeypatch):
    """torch's own message is about positions in a container."""
    write_checkpoint({"value": 1}, tmp_path / "last.ckpt")
    before = (tmp_path / "last.ckpt").read_bytes()
    opener = Path("/dev/full").open
    monkeypatch.setattr(checkpoint, "open", lambda _, mode: opener(mode), raising=False)
    with pytest.raises(RunError, match=r"last.ckpt could not be written \(No space left on device\)"):
        write_checkpoint({"value": torch.zeros(100_000)}, tmp_path / "last.ckpt")
    assert (tmp_path / "last.ckpt").read_bytes() == before


def test_lightnings_plugin(tmp_path):
    io, path = RunCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint(payload(4), path)
    assert io.load_checkpoint(path)["global_step"] == 4
    io.remove_checkpoint(path)
    io.remove_checkpoint(path)
    assert not path.exists()


WRITER = """
import itertools, os, sys, torch
from qmix_lightning.checkpoint.files import write_checkpoint
torch.set_num_threads(1)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        for step in itertools.count():
            weights = torch.full((200_000,), float(step))
            payload = {"state_dict": {"w": weights}, "config": {}, "spec": {}, "env_steps": step, "global_step": step}
            write_checkpoint(payload, line.strip() + "/checkpoints/last.ckpt")
            os.write(1, b"wrote %d\\n" % step)
    os.write(1, b"child %d\\n" % child)
    os.write(1, b"ended %d\\n" % os.WTERMSIG(os.waitpid(child, 0)[1]))
"""


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    """SIGKILL a process that does nothing but write; what it had finished is there, or what came after it."""
    rng = random.Random(7)
    with subprocess.Popen(
        [sys.executable, "-c", WRITER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        in_between = 0
        for number in range(12):
            run = tmp_path / str(number)
            server.stdin.write(f"{run}\n")
            said = {"wrote": -1}
            while not {"child", "wrote"} <= said.keys() or said["wrote"] < 0:
                word, value = server.stdout.readline().split()
                said[word] = int(value)
            time.sleep(rng.random() * 0.1)
            os.kill(said["child"], signal.SIGKILL)
            while "ended" not in said:
                word, value = server.stdout.readline().split()
                said[word] = int(value)
            assert said["ended"] == signal.SIGKILL

            folder = run / "checkpoints"
            got = read_checkpoint(folder / "last.ckpt")
            step = got["global_step"]
            assert step in (said["wrote"], said["wrote"] + 1)
            assert torch.equal(got["state_dict"]["w"], torch.full((200_000,), float(step)))
            if (folder / "previous.ckpt").exists():  # the one before, or the same between its link and the rename
                assert read_checkpoint(folder / "previous.ckpt")["global_step"] in (step - 1, step)
            in_between += any(p.suffix == ".writing" for p in folder.iterdir())
            remove_leftovers(run)
            assert {p.name for p in folder.iterdir()} <= {"last.ckpt", "previous.ckpt"}
        assert in_between > 0  # some kills hit a write
        server.stdin.close()


# Segments -------------------------------------------------------------------------------------------------------------


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
        assert restored.content_hash() == replay.content_hash()
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
    assert restored.content_hash() == replay.content_hash()


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
    assert restored.content_hash() == replay.content_hash()


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
    assert again.content_hash() == restored.content_hash()


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


def flip(_, path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


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


# Finding --------------------------------------------------------------------------------------------------------------


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
    assert find_last(tmp_path) == folder / "last.ckpt"
    shutil.copy(folder / "last.ckpt", folder / "aaa.ckpt")
    (folder / "previous.ckpt").touch()
    assert find_last(tmp_path).name in ("last.ckpt", "aaa.ckpt")


@pytest.mark.parametrize("damage", ["cut", "empty", "segment"])
def test_a_damaged_newest_is_passed_over(tmp_path, damage):
    folder = run_folder(tmp_path)
    last = folder / "last.ckpt"
    if damage == "segment":
        newest = read_checkpoint(last)["ReplayDataModule"]["ranks"][0]["replay"][-1]["name"]
        flip(None, folder / "replay" / newest)
    else:
        last.write_bytes(last.read_bytes()[: 500 if damage == "cut" else 0])
    assert find_last(tmp_path) == folder / "previous.ckpt"


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
