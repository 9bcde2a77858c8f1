"""The notebook of the docs runs from its first cell to its last, as somebody would run it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "quickstart.ipynb"


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path):
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert all(cell.get("outputs", []) == [] for cell in cells), "kept without outputs"
    code.append("assert ql.evaluate('my_team', episodes=4)['return_mean'] == total == 8.0")
    ended = subprocess.run(
        [sys.executable, "-c", "\n\n".join(code)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"outputs", "my_team"}
