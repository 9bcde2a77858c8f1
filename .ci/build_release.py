"""Build wheel and sdist of the last commit, the same bytes each time: ``python .ci/build_release.py [FOLDER]``.

The folder is ``dist/`` if none is named. Times are the commit's, modes and owners fixed. Needs git, setuptools and
wheel; other versions of these may write other bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
BACKEND = "import sys; from setuptools import build_meta as b; t = sys.argv[1]; b.build_wheel(t); b.build_sdist(t)"


def main() -> None:
    """Build, and print the hash of each file."""
    target = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "dist").resolve()
    target.mkdir(parents=True, exist_ok=True)
    epoch = git("log", "-1", "--format=%ct").decode().strip()
    with tempfile.TemporaryDirectory() as folder:
        os.umask(0o022)
        with tarfile.open(fileobj=io.BytesIO(git("-c", "tar.umask=0022", "archive", "HEAD"))) as files:
            files.extractall(folder, filter="fully_trusted")
        environ = {**os.environ, "SOURCE_DATE_EPOCH": epoch, "PYTHONHASHSEED": "0"}
        subprocess.run(
            [sys.executable, "-c", BACKEND, str(target)], cwd=folder, env=environ, check=True, stdout=subprocess.DEVNULL
        )
    for path in sorted(target.iterdir()):
        if path.name.endswith(".tar.gz"):
            repack(path, int(epoch))
        print(hashlib.sha256(path.read_bytes()).hexdigest(), path.name)


def git(*arguments: str) -> bytes:
    """Return what git prints."""
    return subprocess.run(["git", "-C", str(ROOT), *arguments], check=True, capture_output=True).stdout


def repack(path: Path, epoch: int) -> None:
    """Write a tar.gz again with one order, time, owner and set of modes."""
    with tarfile.open(path) as old:
        members = [(member, old.extractfile(member)) for member in sorted(old.getmembers(), key=lambda m: m.name)]
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as new:
            for member, content in members:
                member.mtime, member.uid, member.gid, member.uname, member.gname = epoch, 0, 0, "", ""
                member.mode, member.pax_headers = 0o755 if member.isdir() else 0o644, {}
                new.addfile(member, content)
    path.write_bytes(gzip.compress(buffer.getvalue(), mtime=epoch))


if __name__ == "__main__":
    main()
