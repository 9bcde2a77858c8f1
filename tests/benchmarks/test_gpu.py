"""The benchmark for GPUs runs from end to end where there is none, and says so where one is asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from support import runs

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def start(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", str(BENCHMARK), "--output", "gpu.json", *arguments]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ})


@pytest.mark.slow
def test_it_runs_on_a_cpu(tmp_path: Path):
    done = start(tmp_path, "--device", "cpu", "--quick")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    machine = found["machine"]
    assert (machine["device"], machine["threads"]) == ("cpu", 1)
    assert machine["versions"]["torch"] == torch.__version__
    assert machine["gflops_float32"] > 1
    assert [case["case"] for case in found["learner"]] == ["small", "large"]
    for case in found["learner"]:
        assert set(case["precisions"]) == {"float32", "tf32", "bf16-mixed"}
        for precision in case["precisions"].values():
            ms = precision["ms"]
            assert 0.0 < ms["min"] <= ms["median"] <= ms["max"] < 10_000
            assert precision["turns"] == 2
            assert precision["waits"] is None  # there is nothing to wait for
            names = [row["name"] for row in precision["profile"]]
            assert any("mm" in name for name in names), names
    for case in found["replay"]:
        assert {place: p["ms"]["median"] > 0 for place, p in case["places"].items()} == {"host": True, "device": True}
    (run,) = found["runs"]
    assert run["steps_per_s"]["median"] > 10
    assert run["updates_per_s"]["median"] > 1
    assert run["repeats"] == 1
    assert run["utilisation"] is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_it_says_that_there_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(BENCHMARK.parent))
    told = runs.run(["--output", "gpu.json"], "gpu", status=2)
    assert told == f"torch {torch.__version__} finds no CUDA device; --device cpu --quick runs without one\n"
    assert list(tmp_path.iterdir()) == []
