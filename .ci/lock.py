"""Write ``.ci/requirements.lock``: every extra, with the hashes of all files of each version. Needs uv; takes seconds.

Versions are those of ``constraints.txt``, for Python 3.11; tools of developers are left out. So is torch with what only
torch needs, since which build is right differs by machine: it is installed first.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
LOCK = ROOT / ".ci" / "requirements.lock"
LEFT_OUT = {"test", "dev", "docs"}
HEAD = """\
# pip install torch==2.13.0
# pip install --no-deps --require-hashes -r .ci/requirements.lock
# pip install --no-deps --no-build-isolation .
# Written by .ci/lock.py, for Python 3.11.
"""


def main() -> None:
    """Resolve all at once: Hydra's launchers and the trackers want the same packages."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    with tempfile.TemporaryDirectory() as folder:
        no_torch = Path(folder) / "no_torch.txt"
        no_torch.write_text("torch ; python_version < '3'\n")
        command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--generate-hashes", "--no-header"]
        command += ["--no-annotate", "--python-version", "3.11", "--constraint", "constraints.txt"]
        command += ["--override", str(no_torch)]
        command += [part for extra in sorted({*extras} - LEFT_OUT) for part in ("--extra", extra)]
        done = subprocess.run([*command, "pyproject.toml"], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    LOCK.write_text(HEAD + done.stdout)


if __name__ == "__main__":
    main()
