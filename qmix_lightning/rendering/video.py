"""Write pictures as a video, MP4 or GIF, with a line under each that says where the episode stands."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from qmix_lightning.errors import ConfigurationError, MissingDependencyError
from qmix_lightning.rendering.canvas import INK, PAPER, Canvas, Frame
from qmix_lightning.rendering.recorder import Moment
from qmix_lightning.runtime.near_modules import import_extra

__all__ = ["FORMATS", "VideoWriter", "check_video", "frames_per_second", "with_caption"]

FORMATS = (".mp4", ".gif")
_CAPTION = 28
_BLOCK = 16  # what the codec works in; sizes that are no multiple of it are stretched by ffmpeg, with a warning
_SMALLEST = 320
_HOLD_S = 1.5
_FASTEST = 12
_LETTER = 7.6  # pixels of one letter in a line of ordinary size


def frames_per_second(steps: int) -> int:
    """Return how many steps of an episode to show in a second: slow enough to follow, long ones in half a minute."""
    return max(1, min(_FASTEST, max(min(4, round(steps / 5)), round(steps / 30))))


def check_video(path: Path) -> None:
    """Refuse a name that is no video's, and a machine without what writes it.

    Raises:
        ConfigurationError: the ending is not one of :data:`FORMATS`.
        MissingDependencyError: imageio, its package for ffmpeg, or for an MP4 ffmpeg itself is not installed.
    """
    if path.suffix.lower() not in FORMATS:
        raise ConfigurationError(f"a video ends in {' or '.join(FORMATS)}, not '{path.suffix}'")
    _imageio()
    if path.suffix.lower() == ".mp4":
        _require_ffmpeg()


def _require_ffmpeg() -> None:
    """Refuse a machine without the program, which the package has for the usual ones and looks for on others."""
    import imageio_ffmpeg

    try:
        program = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError:
        program = None
    if program is None or shutil.which(program) is None:
        raise MissingDependencyError(
            f"writing an MP4 needs {program or 'ffmpeg'}, which is not there: install it (Debian: apt install ffmpeg) "
            "or name its path in IMAGEIO_FFMPEG_EXE; a name that ends in .gif needs none"
        )


def _imageio() -> Any:
    for package in ("imageio", "imageio_ffmpeg"):
        import_extra(package, f"writing a video needs {package}", "video")
    import imageio.v2

    return imageio.v2


def with_caption(frame: Frame, moment: Moment, title: str = "") -> Frame:
    """Return a picture with a line under it: step, reward, return so far, who is alive, how it ended; no size is odd.

    Small pictures are enlarged by a whole number, so that their pixels stay sharp.
    """
    factor = max(1, -(-_SMALLEST // frame.shape[1]))
    large = frame.repeat(factor, axis=0).repeat(factor, axis=1)
    height, width = large.shape[:2]
    canvas = Canvas(width, _CAPTION)
    text = "   ".join([title] * bool(title) + _words(moment))
    canvas.text(10, _CAPTION / 2, text, INK, 15 * min(1.0, (width - 20) / (_LETTER * len(text))), "lm")
    shape = (height + _CAPTION + -(height + _CAPTION) % _BLOCK, width + -width % _BLOCK, 3)
    framed = np.full(shape, PAPER, np.uint8)
    left = (shape[1] - width) // 2
    framed[:height, left : left + width] = large
    framed[height : height + _CAPTION, left : left + width] = canvas.pixels()
    return framed


def _words(moment: Moment) -> list[str]:
    words = [f"step {moment.step}", f"return {moment.total_reward:.2f}"]
    if moment.step:
        words.insert(1, f"reward {moment.reward:+.2f}")
    if moment.over:
        outcome = ", ".join(f"{name} {value:g}" for name, value in moment.outcome.items())
        return [*words, f"end: {outcome}" if outcome else "end"]
    if moment.alive != moment.n_agents:
        words.append(f"alive {moment.alive} of {moment.n_agents}")
    return words


class VideoWriter:
    """Writes pictures to ``path`` as they come; a context, at the end of which the file appears, whole or not at all.

    Args:
        path: ends in ``.mp4`` or ``.gif``.
        fps: pictures in a second.
        episodes: how many follow each other; they are numbered where there are several.
    """

    def __init__(self, path: Path, fps: int, episodes: int = 1) -> None:
        check_video(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._fps = path, fps
        self._episodes, self._over = episodes, 0
        self._temporary = path.with_name(f".writing-{os.getpid()}{path.suffix}")
        if path.suffix.lower() == ".gif":
            options: dict[str, Any] = {"duration": 1000 / fps, "loop": 0}
        else:
            options = {"fps": fps, "codec": "libx264", "quality": 8, "macro_block_size": _BLOCK}
        self._writer = _imageio().get_writer(self._temporary, **options)
        self._size: tuple[int, ...] | None = None

    def __call__(self, frame: Frame, moment: Moment) -> None:
        """Add one picture; the last of an episode is held for a while."""
        self._size = self._size or frame.shape
        title = f"{self._over + 1} of {self._episodes}" if self._episodes > 1 else ""
        picture = with_caption(_fitted(frame, self._size), moment, title)
        self._over += moment.over
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"os\.fork\(\) was called")  # JAX's, of starting ffmpeg, which execs
            for _ in range(1 + (round(_HOLD_S * self._fps) if moment.over else 0)):
                self._writer.append_data(picture)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        """Finish the file; after a failure leave nothing behind."""
        self._writer.close()
        if kind is None:
            os.replace(self._temporary, self._path)
        else:
            self._temporary.unlink(missing_ok=True)


def _fitted(picture: Frame, size: tuple[int, ...]) -> Frame:
    """Return a picture cut or padded to ``size``: a video has one size, and a simulator's window may change its."""
    height, width = min(picture.shape[0], size[0]), min(picture.shape[1], size[1])
    cut = picture[:height, :width]
    return np.pad(cut, ((0, size[0] - height), (0, size[1] - width), (0, 0)), mode="edge")
