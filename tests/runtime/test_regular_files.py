"""Files from anybody: what is read, and what is refused in one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qmix_lightning.errors import CheckpointError
from qmix_lightning.runtime.regular_files import read_json, read_regular, read_yaml, write_whole


def test_what_is_there_is_read(tmp_path: Path):
    (tmp_path / "a").write_text('{"x": [1, 2.5, "y"]}')
    assert read_json(tmp_path / "a") == read_yaml(tmp_path / "a") == {"x": [1, 2.5, "y"]}


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"9" * 5000, b"\xff\xfe\x00"])
def test_what_is_no_json_is_told(tmp_path: Path, content: bytes):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(CheckpointError, match="a cannot be read: "):
        read_json(tmp_path / "a")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"a: [", "cannot be read"),
        (b"a: " + b"[" * 2_000, "cannot be read"),
        (b"a: 2020-13-13", "cannot be read"),
        (b"a: !!python/object/apply:os.getcwd []", "cannot be read"),
        (b"a: &a [*a]", "refers to its own parts"),
        (b"a: 1\n" * 300_000, "at most"),
    ],
)
def test_what_is_no_yaml_is_told(tmp_path: Path, content: bytes, told: str):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(CheckpointError, match=told):
        read_yaml(tmp_path / "a")


def test_links_pipes_and_folders_are_not_read(tmp_path: Path):
    (tmp_path / "link").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "link", tmp_path / "pipe", tmp_path, tmp_path / "none"):
        with pytest.raises(CheckpointError, match="is not"):
            read_regular(path, 10**9)


def test_a_text_is_written_in_the_place_of_what_was_there(tmp_path: Path):
    (tmp_path / "other").write_text("theirs")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").symlink_to(tmp_path / "other")
    for path in (tmp_path / "folder" / "a", tmp_path / "new" / "a"):
        write_whole("ours", path)
        assert (path.read_text(), path.is_symlink()) == ("ours", False)
        assert os.listdir(path.parent) == ["a"]
    assert (tmp_path / "other").read_text() == "theirs", "a link is replaced, not followed"
