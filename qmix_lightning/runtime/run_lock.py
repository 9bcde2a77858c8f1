"""Let one process at a time run in a folder; the kernel releases the lock when it ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sys
import time
from pathlib import Path

from qmix_lightning.errors import ConfigurationError
from qmix_lightning.runtime.text import shown_path

__all__ = ["LOCK_FILE", "RunLock", "holds_files"]

LOCK_FILE = ".lock"


def holds_files(folder: Path) -> bool:
    """Return whether a folder is there and holds anything but a lock."""
    return folder.is_dir() and any(path.name != LOCK_FILE for path in folder.iterdir())


class RunLock:
    """Lock on a run folder; use it in a ``with`` statement.

    The file is removed when the lock is released; one that a killed process left behind is nobody's.

    Args:
        folder: made if it is not there.

    Raises:
        ConfigurationError: on entering; another process holds it, and the message says which.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK_FILE
        self._descriptor: int | None = None

    def __enter__(self) -> RunLock:
        while self._descriptor is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            except FileNotFoundError:
                continue  # another process has just removed the folder, in which it had written nothing
            except OSError as error:
                raise ConfigurationError(f"{self.path} cannot be made: {error.strerror}") from error
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    holder = self._holder(descriptor)
                    os.close(descriptor)
                    raise ConfigurationError(
                        f"{shown_path(self.path.parent)} is in use by {holder}: wait for its end, or choose another "
                        "run_dir"
                    ) from None
                print(f"{self.path} cannot be locked ({error.strerror}): a second run is not kept out", file=sys.stderr)
                os.close(descriptor)
                return self
            if self._is_still_there(descriptor):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, b"%d\n" % os.getpid())
                self._descriptor = descriptor
            else:
                os.close(descriptor)  # its holder has ended and removed it meanwhile
        return self

    def __exit__(self, *args: object) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                self.path.unlink()
            os.close(self._descriptor)
            self._descriptor = None

    def _is_still_there(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.stat(self.path, follow_symlinks=False), os.fstat(descriptor))
        except OSError:
            return False

    @staticmethod
    def _holder(descriptor: int) -> str:
        for _ in range(20):  # it writes its number right after it has the lock
            if (number := os.pread(descriptor, 20, 0).strip()).isdigit():
                return f"process {number.decode()}"
            time.sleep(0.01)
        return "another process"
