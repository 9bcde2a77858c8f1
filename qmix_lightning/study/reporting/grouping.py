"""Group runs by task, algorithm and what differs between them, and name the groups."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qmix_lightning.study.reporting.runs import Run

__all__ = ["Group", "group_runs"]

_NAMING = ("env.scenario", "env.id", "env.preset")
"""Settings that say which task of its family an environment is: they are part of its name, differing or not."""
_MOST_SHOWN = 3


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed only.

    Attributes:
        task: name of the task.
        algorithm: name of the algorithm, with the settings in which it differs from others on the task.
        runs: by seed.
    """

    task: str
    algorithm: str
    runs: list[Run]


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Return the groups, in the order of their names."""
    tasks: dict[tuple[tuple[str, str], ...], list[Run]] = defaultdict(list)
    for run in runs:
        tasks[_part(run, env=True)].append(run)
    names = _task_names({key: found[0].env for key, found in tasks.items()})
    groups = []
    for key, found in tasks.items():
        learners: dict[str, list[Run]] = defaultdict(list)
        for run in found:
            learners[run.algorithm].append(run)
        for algorithm, of_one in learners.items():
            variants: dict[tuple[tuple[str, str], ...], list[Run]] = defaultdict(list)
            for run in of_one:
                variants[_part(run, env=False)].append(run)
            for variant, same in variants.items():
                label = _label(algorithm, dict(variant), [dict(other) for other in variants])
                groups.append(Group(names[key], label, sorted(same, key=lambda run: run.seed)))
    return sorted(groups, key=lambda group: (group.task, group.algorithm))


def _part(run: Run, *, env: bool) -> tuple[tuple[str, str], ...]:
    own = [("env.name", run.env)] if env else []
    chosen = ((k, v) for k, v in run.settings.items() if k.startswith("env.") is env and v != "{}")  # that sets nothing
    return tuple(sorted({*own, *chosen}))


def _task_names(envs: Mapping[tuple[tuple[str, str], ...], str]) -> dict[tuple[tuple[str, str], ...], str]:
    """Return a name for each task: its environment, which of its family it is, and in what it differs from others."""
    families: dict[str, list[tuple[tuple[str, str], ...]]] = defaultdict(list)
    for key, env in envs.items():
        settings = dict(key)
        naming = [settings[k] for k in _NAMING if settings.get(k, "None") != "None"]
        family = [] if env == "pettingzoo" and naming else [env]  # an address says it all
        families[" ".join([*family, *naming])].append(key)
    return {
        key: _label(name, dict(key), [dict(other) for other in alike])
        for name, alike in families.items()
        for key in alike
    }


def _label(name: str, settings: Mapping[str, str], alike: Sequence[Mapping[str, str]]) -> str:
    """Return a name with the settings in which something differs from what has the same name otherwise."""
    keys = sorted({*settings, *(key for other in alike for key in other)} - set(_NAMING))
    differing = [key for key in keys if len({other.get(key) for other in alike}) > 1]
    if not differing:
        return name
    short = {key: key.rpartition(".")[2] for key in differing}
    shown = [
        f"{short[key] if list(short.values()).count(short[key]) == 1 else key}={settings[key]}"
        for key in differing
        if key in settings
    ]
    if len(shown) > _MOST_SHOWN:
        whole = hashlib.sha256(repr(sorted(settings.items())).encode()).hexdigest()[:4]
        shown = [*shown[:_MOST_SHOWN], f"+{len(shown) - _MOST_SHOWN} ({whole})"]
    return " ".join([name, *shown])
