import os
import pickle
import random
import signal
import time
import zipfile
from pathlib import Path

import pytest
import torch

from qmix_lightning.checkpoint import files as checkpoint
from qmix_lightning.checkpoint.files import FORMAT, read_checkpoint, remove_leftovers, write_checkpoint
from qmix_lightning.checkpoint.lightning_io import RunCheckpointIO
from qmix_lightning.errors import CheckpointError, RunError
from support import runs
from support.checkpoints import Hostile, payload
from support.processes import wait_until


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
    assert "File is not a zip file" in refused(path)


def test_truncated_anywhere(tmp_path):
    path = tmp_path / "x.ckpt"
    write_checkpoint(payload(), path)
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 101), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert str(path) in refused(path)


def test_a_flipped_bit_is_noticed_wherever_it_matters(tmp_path):
    """Either the file is refused, or what it holds is unchanged (a date in the archive, say)."""
    path = tmp_path / "x.ckpt"
    write_checkpoint(payload(), path)
    whole, good = path.read_bytes(), repr(read_checkpoint(path))
    rng = random.Random(3)
    directory = whole.index(b"PK\x01\x02")  # the archive's directory, which has no checksum of its own
    bits = [(rng.randrange(directory), rng.randrange(8)) for _ in range(60)]
    bits += [(rng.randrange(directory, len(whole)), rng.randrange(8)) for _ in range(160)]
    # The bit that marks an entry as a folder: torch then returns memory as it finds it.
    entry = directory
    while whole[entry : entry + 4] == b"PK\x01\x02":
        bits.append((entry + 38, 4))
        entry += 46 + sum(int.from_bytes(whole[entry + n : entry + n + 2], "little") for n in (28, 30, 32))
    assert len(bits) > 220 + 4
    bad = 0
    for i, bit in bits:
        changed = bytearray(whole)
        changed[i] ^= 1 << bit
        path.write_bytes(changed)
        try:
            assert repr(read_checkpoint(path)) == good, f"bit {bit} of byte {i}"
        except CheckpointError:
            bad += 1
    assert bad > 80


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
    for _ in range(120):
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
    assert len(said) > 60
    assert not any("\n" in message for message in said)


def test_a_list_that_refers_to_its_own_parts_is_refused_at_once(tmp_path):
    """A file of kilobytes, which would be 9 ** 18 values once anything copies it."""
    laughs = ["x"]
    for _ in range(18):
        laughs = [laughs] * 9
    itself = []
    itself.append(itself)
    for value in (laughs, itself):
        write_checkpoint(payload() | {"config": {"env": {"name": "x", "kwargs": value}}}, tmp_path / "x.ckpt")
        assert (tmp_path / "x.ckpt").stat().st_size < 100_000
        assert "refers to its own parts without end" in refused(tmp_path / "x.ckpt")


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


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    """SIGKILL a process that does nothing but write; what it had finished is there, or what came after it."""
    rng = random.Random(7)
    in_between = 0
    for number in range(10):
        run = tmp_path / str(number)
        writer = runs.start([str(run)], "support.checkpoint_writer")
        wait_until(lambda writer=writer: "\n" in writer.printed() or writer.poll() is not None, "nothing was written")
        time.sleep(rng.random() * 0.1)
        writer.kill()
        assert writer.wait() == -signal.SIGKILL, writer.printed()
        wrote = int(writer.printed().split("\n")[-2])  # the last whole line

        folder = run / "checkpoints"
        got = read_checkpoint(folder / "last.ckpt")
        step = got["global_step"]
        assert step in (wrote, wrote + 1)
        assert torch.equal(got["state_dict"]["w"], torch.full((200_000,), float(step)))
        if (folder / "previous.ckpt").exists():  # the one before, or the same between its link and the rename
            assert read_checkpoint(folder / "previous.ckpt")["global_step"] in (step - 1, step)
        in_between += any(p.suffix == ".writing" for p in folder.iterdir())
        remove_leftovers(run)
        assert {p.name for p in folder.iterdir()} <= {"last.ckpt", "previous.ckpt"}
    assert in_between > 0  # some kills hit a write
