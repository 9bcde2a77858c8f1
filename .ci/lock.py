"""Write ``.ci/requirements.lock``: packages with the hashes of all their files. Needs pip-tools, and takes minutes.

It locks environments, exports, reports, videos and trackers (not Ray and Hydra's launchers), in the versions of
``constraints.txt``, for Python 3.11. torch is left out, since which build is right differs by platform.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
LOCK = ROOT / ".ci" / "requirements.lock"
EXTRAS = ("all", "export", "hub", "video", "page", "report", "trackers")
HEAD = """\
# pip install torch==2.13.0
# pip install --no-deps --require-hashes -r .ci/requirements.lock
# pip install --no-deps .
# Written by .ci/lock.py, for Python 3.11.
"""


def main() -> None:
    """Resolve with pip-compile, or clean a file that it has written before (its path as an argument)."""
    if len(sys.argv) > 1:
        LOCK.write_text(cleaned(Path(sys.argv[1]).read_text()))
        return
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.lock"
        command = [
            sys.executable,
            "-m",
            "piptools",
            "compile",
            "-q",
            "--strip-extras",
            "--generate-hashes",
            "--no-header",
        ]
        command += [part for extra in EXTRAS for part in ("--extra", extra)]
        command += ["--constraint", "constraints.txt", "-o", str(raw), "pyproject.toml"]
        subprocess.run(command, cwd=ROOT, check=True)
        LOCK.write_text(cleaned(raw.read_text()))


def cleaned(text: str) -> str:
    """Return a lock without indexes and paths of one machine, comments, torch, and this package itself."""
    blocks = re.findall(r"^[A-Za-z0-9][\w.-]*==\S+ \\\n(?:    --hash=\S+(?: \\)?\n)+", text, re.MULTILINE)
    kept = [block for block in blocks if not block.startswith("torch==")]
    return HEAD + "".join(kept)


if __name__ == "__main__":
    main()
