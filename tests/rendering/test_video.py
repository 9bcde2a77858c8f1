"""Videos are written whole or not at all, in sizes that every player takes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from qmix_lightning.errors import ConfigurationError, MissingDependencyError
from qmix_lightning.rendering.recorder import Moment
from qmix_lightning.rendering.video import VideoWriter, check_video, frames_per_second, with_caption
from support.pictures import frames_of

FRAMES = [np.full((120, 333, 3), shade, np.uint8) for shade in (40, 120, 200)]


def moment(step: int, over: bool = False) -> Moment:
    return Moment(step=step, reward=0.5, total_reward=0.5 * step, alive=2, n_agents=3, over=over)


def write(path: Path, frames=FRAMES) -> None:
    with VideoWriter(path, fps=2) as writer:
        for step, frame in enumerate(frames):
            writer(frame, moment(step, over=step == 2))


@pytest.mark.parametrize("ending", [".mp4", ".gif"])
def test_what_is_written_can_be_read_back(tmp_path: Path, ending: str, capfd):
    path = tmp_path / "new" / f"team{ending}"
    write(path)
    video = frames_of(path)
    assert len(video) == (3 + 3 if ending == ".mp4" else 3), "the end is held for a while"
    assert [int(np.median(frame[60])) for frame in video[:3]] == pytest.approx([40, 120, 200], abs=6)
    assert video.shape[1] % 16 == video.shape[2] % 16 == 0
    assert capfd.readouterr().err == "", "ffmpeg has nothing to complain about"
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_failure_leaves_nothing(tmp_path: Path):
    path = tmp_path / "team.mp4"
    path.write_text("the last one")
    with pytest.raises(ZeroDivisionError):
        write(path, (np.full((120, 333, 3), 100 // shade, np.uint8) for shade in (50, 0)))
    assert path.read_text() == "the last one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_window_that_changes_its_size_is_cut_and_padded(tmp_path: Path):
    path = tmp_path / "team.mp4"
    write(path, [FRAMES[0], FRAMES[1][:100, :300], np.pad(FRAMES[2], ((0, 90), (0, 90), (0, 0)))])
    video = frames_of(path)
    assert video.shape[1:] == with_caption(FRAMES[0], moment(0)).shape
    assert all((frame[125:] < 100).any() for frame in video), "the line of text stays below"


def test_small_pictures_are_enlarged_by_whole_pixels():
    board = np.zeros((20, 40, 3), np.uint8)
    board[::2, ::2] = 255
    shown = with_caption(board, moment(3))
    factor = 8
    assert np.array_equal(shown[: 20 * factor : factor, : 40 * factor : factor], board)
    assert (shown[20 * factor :] < 100).any(), "there is a line of text below"


def test_the_line_has_the_last_reward_also_at_the_end():
    plain, end = (with_caption(FRAMES[2], Moment(4, reward, 2.0, 2, 2, over=True)) for reward in (0.5, 0.25))
    assert not np.array_equal(plain, end)


def test_short_episodes_are_slow_enough_to_follow():
    assert [frames_per_second(steps) for steps in (1, 2, 25, 50, 300, 900)] == [1, 1, 4, 4, 10, 12]


@pytest.mark.parametrize("name", ["team.avi", "team", "team.html"])
def test_other_endings_are_refused(name: str):
    with pytest.raises(ConfigurationError, match=r"a video ends in \.mp4 or \.gif"):
        check_video(Path(name))


def test_a_missing_ffmpeg_is_told_before_anything_is_played(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/nowhere/ffmpeg")
    with pytest.raises(MissingDependencyError, match=r"an MP4 needs /nowhere/ffmpeg, which is not there.*\.gif"):
        check_video(Path("team.mp4"))
    write(tmp_path / "team.gif")
    monkeypatch.delenv("IMAGEIO_FFMPEG_EXE")
    monkeypatch.setattr("imageio_ffmpeg._utils._get_ffmpeg_exe", lambda: None)
    with pytest.raises(MissingDependencyError, match="an MP4 needs ffmpeg, which is not there"):
        check_video(Path("team.mp4"))


@pytest.mark.parametrize("package", ["imageio", "imageio_ffmpeg"])
def test_a_missing_package_gives_the_command_that_installs_it(package: str, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'qmix-lightning\[video\]'"):
        check_video(Path("team.mp4"))
