"""Lowest and highest version of every range in ``pyproject.toml`` but torch's: the tests of what each is for.

Needs uv, an index, and a gigabyte for each environment.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from support.environments import EXTRAS, PROJECT, make_environment, raised, run, run_tests

EXTRAS_OF: dict[str, tuple[str, ...]] = {
    "core": (),
    "games": ("mpe", "lbf", "rware", "overcooked", "butterfly", "vmas", "magent2"),
    "jax and pictures": ("smax", "jaxmarl", "report", "video", "page"),
    "policies": ("export", "hub"),
    "sweep": ("sweep",),
    "ray": ("ray",),
    "trackers": ("mlflow", "trackio", "wandb"),
    "docs": ("docs",),
    "tools": ("test", "dev"),
}
"""Extras that are installed together: at the lowest, each still has the lowest version of its own range."""

TESTS = {
    "core": (
        "tests/config/test_schema.py",
        "tests/config/test_resume.py",
        "tests/checkpoint/test_files.py",
        "tests/checkpoint/test_segments.py",
        "tests/vector/test_sync.py",
        "tests/nn/test_packing.py",
        "tests/policies/test_folder.py",
        "tests/training/test_csv_logger.py",
        "tests/training/test_datamodule.py",
        "tests/training/test_metrics.py",
        "tests/training/test_trackers.py",
    ),
    "games": tuple(
        f"tests/envs/test_{name}.py"
        for name in (
            "mpe",
            "lbf",
            "rware",
            "overcooked",
            "butterfly",
            "vmas",
            "magent",
            "gymnasium_tuple",
            "pettingzoo",
        )
    ),
    "jax and pictures": (
        "tests/envs/test_smax.py",
        "tests/envs/test_jaxmarl.py",
        "tests/rendering/test_page.py",
        "tests/rendering/test_video.py",
        "tests/study/test_report.py",
    ),
    "policies": ("tests/policies/test_programs.py", "tests/policies/test_hub.py"),
    "sweep": ("tests/study/test_optuna_sweeper.py", "tests/study/test_sweep.py"),
    "ray": ("-m", "integration", "tests/rollout/test_ray_collector.py"),
    "trackers": ("-m", "integration", "tests/training/test_real_trackers.py"),
    "docs": ("-m", "docs", "-k", "builds_strictly", "tests/test_docs.py"),
    "tools": ("tests/test_packaging.py", "tests/replay/test_storage.py"),
}
PROGRAMS = {"tools": (("ruff", "check", "."), ("pyright", "--version"), ("pre_commit", "validate-config"))}


def test_every_extra_is_among_them():
    assert sorted(extra for extras in EXTRAS_OF.values() for extra in extras) == sorted(EXTRAS)


@pytest.mark.ranges
@pytest.mark.parametrize("resolution", ["lowest-direct", "highest"])
@pytest.mark.parametrize("part", TESTS)
def test_it_works_at_either_end(part: str, resolution: str, tmp_path: Path):
    extras = EXTRAS_OF[part]
    python = make_environment(tmp_path / "env", *extras, resolution=resolution)
    if resolution == "lowest-direct":
        own = [line for extra in extras for line in EXTRAS[extra]] or PROJECT["dependencies"]
        assert raised(python, [line for line in own if not line.startswith("torch>")]) == []
    print(run_tests(python, *TESTS[part]))
    for program in PROGRAMS.get(part, ()):
        run(python, *program)
    shutil.rmtree(tmp_path / "env")
