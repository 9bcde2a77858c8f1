"""Find the Hydra plugins that a sweep asks for, and share the cores among its jobs."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from qmix_lightning.errors import MissingDependencyError
from qmix_lightning.runtime.resources import available_cores

__all__ = ["prepare_plugins", "share_of_cores"]

_PLUGINS = {
    "hydra/launcher=joblib": ("hydra_joblib_launcher", "sweep"),
    "hydra/launcher=submitit_local": ("hydra_submitit_launcher", "sweep"),
    "hydra/launcher=submitit_slurm": ("hydra_submitit_launcher", "sweep"),
    "hydra/launcher=ray": ("hydra_ray_launcher", "ray"),
    "hydra/sweeper=optuna": ("hydra_optuna_sweeper", "sweep"),
}
"""What is typed -> the plugin that it needs, and the extra that installs it."""


def prepare_plugins(arguments: Sequence[str]) -> None:
    """Check that the launcher and the sweeper that were typed are installed, and make ours known to Hydra.

    Raises:
        MissingDependencyError: with the line that installs it.
    """
    for argument in arguments:
        module, extra = _PLUGINS.get(argument, (None, ""))
        if module and not importlib.util.find_spec(f"hydra_plugins.{module}"):
            raise MissingDependencyError(f"{argument} needs its plugin: pip install 'qmix-lightning[{extra}]'")
    if "hydra/sweeper=optuna" in arguments:
        from qmix_lightning.study.optuna_sweeper import register_sweeper

        register_sweeper()


def share_of_cores(launcher: Mapping[str, Any]) -> int | None:
    """Return the cores that each job of a launcher has, where jobs run side by side on a machine.

    ``None``: all that the process may use, or all of them for one job at a time.
    """
    kind, cores = str(launcher["_target_"]).rpartition(".")[2], available_cores()
    if kind == "JoblibLauncher":
        jobs = int(launcher["n_jobs"])
        jobs = jobs if jobs > 0 else max(1, cores + 1 + jobs)
        return max(1, cores // jobs)
    if kind == "RayLauncher":  # it starts as many jobs as their CPUs allow
        return max(1, int(launcher["ray"]["remote"].get("num_cpus") or 1))
    if kind == "LocalLauncher":  # submitit's, which starts all jobs at once
        return max(1, int(launcher["cpus_per_task"] or 1))
    if kind == "SlurmLauncher" and launcher["cpus_per_task"]:  # not every SLURM binds a job to its cores
        return int(launcher["cpus_per_task"])
    return None
