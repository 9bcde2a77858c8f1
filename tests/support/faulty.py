"""Environments that fail in the ways simulators do; each failure happens a given number of times in all processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from support.fakes import VaryingLength
from support.processes import running


class HangsWhileItDraws(VaryingLength):
    def render(self) -> None:
        time.sleep(600)


class Faulty(VaryingLength):
    """``VaryingLength`` that fails at the third step of an episode, ``times`` times.

    Args:
        fault: ``raise``, ``invalid``, ``nan``, ``shape``, ``mask``, ``kill``, ``exit``, ``hang``, ``reset``, ``none``.
        folder: where it leaves a file for every failure.
        times: how many failures in all.
        game: start a process of its own, as a simulator does, and note its number in the folder.
        parent: never fail in this process (the trainer's own).
    """

    def __init__(self, fault: str, folder: str, times: int = 1, game: bool = False, parent: int = 0) -> None:
        super().__init__(extra_length=3)
        self.fault, self.folder, self.times, self.parent = fault, Path(folder), times, parent
        self.game: subprocess.Popen[bytes] | None = None
        if game:
            self.game = subprocess.Popen(["sleep", "600"])
            (self.folder / f"game-{self.game.pid}").touch()

    def _due(self) -> bool:
        if os.getpid() == self.parent:
            return False
        for i in range(self.times):
            try:
                (self.folder / f"fault-{i}").touch(exist_ok=False)
                return True
            except FileExistsError:
                continue
        return False

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        if self.fault == "reset" and self._due():
            raise KeyError("no first observation")
        return super().reset(seed, options)

    def step(self, actions: dict[str, Any]) -> Any:
        from qmix_lightning.errors import InvalidEpisodeError

        observations, rewards, terminations, truncations, infos = super().step(actions)
        if self._t == 3 and self.fault not in ("reset", "none") and self._due():
            first = next(iter(observations))
            match self.fault:
                case "raise":
                    raise RuntimeError("the simulator broke")
                case "invalid":
                    raise InvalidEpisodeError("the game restarted")
                case "nan":
                    observations[first] = observations[first] * np.nan
                case "shape":
                    observations[first] = np.zeros(7, np.float32)
                case "mask":
                    infos[first]["action_mask"] = np.zeros(self.n_actions)
                case "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "exit":
                    os._exit(3)
                case "hang":
                    time.sleep(600)
        return observations, rewards, terminations, truncations, infos

    def close(self) -> None:
        if self.game is not None:
            self.game.kill()
            self.game.wait()
            self.game = None


class Mortal(VaryingLength):
    """``VaryingLength`` whose process dies every few steps, and hangs in place of the second death; it keeps accounts.

    Args:
        folder: where it appends a line, the length, for every episode that it ended.
        every: joint steps, in all processes together, between deaths.
    """

    def __init__(self, folder: str, every: int) -> None:
        super().__init__()
        self.folder, self.every = Path(folder), every

    def _tick(self) -> int:
        """Joint steps so far, in all processes."""
        descriptor = os.open(self.folder / "steps", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, b".")
        own = os.lseek(descriptor, 0, os.SEEK_CUR)  # not the file's size: another process may have written since
        os.close(descriptor)
        return own

    def step(self, actions: dict[str, Any]) -> Any:
        ticks = self._tick()
        if ticks % self.every == 0:
            if ticks == 2 * self.every:
                time.sleep(600)
            os.kill(os.getpid(), signal.SIGKILL)
        outcome = super().step(actions)
        if not self.agents:
            descriptor = os.open(self.folder / "episodes", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(descriptor, b"%d\n" % self._t)
            os.close(descriptor)
        return outcome


def games_left(folder: Path) -> list[int]:
    """Games that were started and still run."""
    started = {int(path.name.removeprefix("game-")) for path in folder.glob("game-*")}
    return [process.pid for process in running() if process.pid in started]


class Unstarted(VaryingLength):
    """Hangs or ends its process (``how``) at every first observation."""

    state = None  # or the adapter would reset it, to see how large the state is

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        os.write(2, b"error while loading shared libraries: libfoo.so\n")
        time.sleep(600) if self.how == "hang" else os._exit(127)


class KeepsItsError(VaryingLength):
    """Keeps an exception, and with it every frame that it went through."""

    def step(self, actions: dict[str, Any]) -> Any:
        try:
            raise RuntimeError("lost its connection")
        except RuntimeError:
            self.kept = sys.exc_info()
        frame = sys._getframe()
        self.frames = [frame, frame.f_back, frame.f_back.f_back if frame.f_back else None]
        return super().step(actions)
