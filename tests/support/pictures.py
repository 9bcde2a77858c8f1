"""Play a few steps and draw each; read videos back."""

from __future__ import annotations

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import torch
from PIL import Image, ImageSequence

from qmix_lightning.rendering.frames import FrameRenderer, draws_itself


def drawn(env, steps: int = 3, *, own: bool = True) -> list[np.ndarray]:
    """Pictures of the first environment in ``steps`` random steps and before them, each looked at.

    ``own``: the environment must draw itself.
    """
    assert draws_itself(env) is own
    everyone, generator = torch.ones(env.num_envs, dtype=torch.bool), torch.Generator().manual_seed(0)
    draw = FrameRenderer(env)
    shown = env.reset(everyone, torch.arange(3, 3 + env.num_envs))
    pictures = [draw(shown, None).copy()]
    for _ in range(steps):
        legal = shown.avail_actions.float()
        actions = torch.multinomial(legal.flatten(0, 1), 1, generator=generator).reshape(legal.shape[:2])
        shown = env.step(actions, everyone).next
        pictures.append(draw(shown, actions[0].tolist()).copy())
    for picture in pictures:
        assert picture.dtype == np.uint8
        assert picture.ndim == 3
        assert picture.shape[2] == 3
        assert min(picture.shape[:2]) >= 100
        assert len(np.unique(picture.astype(np.int32) @ (1 << 16, 1 << 8, 1))) > 2, "something is drawn"
    assert any(not np.array_equal(pictures[0], later) for later in pictures[1:]), "what happens is seen"
    return pictures


def frames_of(path: Path) -> np.ndarray:
    """The pictures of a video, ``[n, height, width, 3]``."""
    with_size = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path)]
    if path.suffix == ".gif":
        with Image.open(path) as animation:
            return np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(animation)])
    still = subprocess.run([*with_size, "-frames:v", "1", "-f", "image2pipe", "-c:v", "ppm", "-"], capture_output=True)
    width, height = map(int, still.stdout.split(b"\n", 2)[1].split())
    raw = subprocess.run([*with_size, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True)
    assert raw.stderr == b""
    return np.frombuffer(raw.stdout, np.uint8).reshape(-1, height, width, 3)
