"""Read suites: tasks, algorithms, seeds, the budget, and what others have published on them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from qmix_lightning.config.run_config import NotNegative, Positive
from qmix_lightning.config.schema import from_mapping
from qmix_lightning.config.shipped import shipped_files
from qmix_lightning.config.trust import may_be_in_a_file
from qmix_lightning.errors import ConfigurationError
from qmix_lightning.runtime.regular_files import is_bounded
from qmix_lightning.runtime.text import did_you_mean, on_one_line, printable

__all__ = ["Algorithm", "Published", "Suite", "Task", "load_suite", "suite_names"]

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+]*")


@dataclass(frozen=True)
class Task:
    """What is learned.

    Attributes:
        overrides: of ``qmix-train``, for every algorithm.
        title: what tables call it; its label if empty.
        metric: what is compared.
        total_env_steps: its budget, if it is not the suite's.
        random: what random play gets, measured or worked out.
        best: the most that can be had, where it is known; scores on it are normalised by these two.
        threshold: of the metric, whose time is measured: the first evaluation at or above it.
    """

    overrides: list[Any]
    title: str = ""
    metric: Literal["return_mean", "win_rate"] = "return_mean"
    total_env_steps: int | None = None
    random: float | None = None
    best: float | None = None
    threshold: float | None = None

    @property
    def metric_name(self) -> str:
        """What tables and axes call the metric."""
        return "win rate" if self.metric == "win_rate" else "return"


@dataclass(frozen=True)
class Algorithm:
    """What learns: overrides for every task, and more of them ``for_task`` a single one.

    ``learns_from_replay`` says whether the suite's ``replay`` overrides are for it.
    """

    overrides: list[Any]
    learns_from_replay: bool = True
    for_task: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Published:
    """A figure of others, which stands beside ours where task, algorithm and environment steps are the same.

    ``env_steps`` is ``None`` where the source says what learning ends at.
    """

    task: str
    algorithm: str
    value: float
    source: str
    env_steps: int | None


@dataclass(frozen=True)
class Suite:
    """Everything that ``qmix-bench`` runs and compares.

    Attributes:
        name: of its file; results are kept under it.
        summary: one line.
        overrides: of ``qmix-train``, for every run.
        replay: more of them, for algorithms that learn from replay.
        total_env_steps: budget of a run.
        evaluations: so many while it trains, evenly spaced.
        eval_episodes: greedy episodes of each.
        final_episodes: of the evaluation of the last network.
        final_seed: how its episodes start: by a seed that no training used.
        seeds: if none are typed.
        tasks: by label.
        algorithms: by label.
        published: figures of others.
    """

    name: str
    summary: str
    total_env_steps: Positive
    tasks: dict[str, Task]
    algorithms: dict[str, Algorithm]
    overrides: list[Any] = field(default_factory=list)
    replay: list[Any] = field(default_factory=list)
    evaluations: Positive = 10
    eval_episodes: Positive = 32
    final_episodes: Positive = 400
    final_seed: int = 1000
    seeds: list[NotNegative] = field(default_factory=lambda: [1, 2, 3])
    published: list[Published] = field(default_factory=list)

    def budget(self, task: str) -> int:
        """Return the environment steps of a run on a task, if nothing else was typed."""
        return self.tasks[task].total_env_steps or self.total_env_steps

    def title(self, task: str) -> str:
        """Return what tables call a task."""
        return self.tasks[task].title or task

    def overrides_of(self, task: str, algorithm: str) -> list[str]:
        """Return what ``qmix-train`` is told, without the seed."""
        steps, learner = self.budget(task), self.algorithms[algorithm]
        budget = [
            f"total_env_steps={steps}",
            f"eval_interval={max(1, steps // self.evaluations)}",
            f"eval_episodes={self.eval_episodes}",
        ]
        replay = self.replay if learner.learns_from_replay else []
        own = [*learner.overrides, *learner.for_task.get(task, [])]
        return [*self.overrides, *self.tasks[task].overrides, *budget, *replay, *own]


def suite_names() -> list[str]:
    """Return the suites that come with the package."""
    return sorted(shipped_files("suite"))


def load_suite(name: str) -> Suite:
    """Return a suite by its name, or by the path of a YAML file.

    Raises:
        ConfigurationError: there is none, or its file is wrong; the message has the line.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or "/" in name:
        try:
            return parse_suite(path.read_text(), path.stem, str(path))
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
            raise ConfigurationError(f"the suite {path} cannot be read: {reason}") from error
    shipped = shipped_files("suite")
    if name not in shipped:
        raise ConfigurationError(f"unknown suite '{name}'{did_you_mean(name, shipped)}")
    return parse_suite(shipped[name].read_text(), name, f"{name}.yaml")


def parse_suite(text: str, name: str, shown: str) -> Suite:
    """Return the suite that a YAML text describes.

    Args:
        text: of the file.
        name: of the suite.
        shown: the file, for messages.

    Raises:
        ConfigurationError: begins with the file and the line.
    """
    import yaml

    try:
        root = yaml.compose(text, yaml.SafeLoader)
        content = yaml.safe_load(text)
    except (ValueError, TypeError, RecursionError) as error:  # a date of month 13, a list as a key, a thousand brackets
        raise ConfigurationError(f"{shown} cannot be read: {printable(error)}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{shown}:{mark.line + 1}" if mark else shown
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigurationError(f"{where}: {on_one_line(problem)}") from error
    if not isinstance(content, Mapping) or not is_bounded(content):
        raise ConfigurationError(f"{shown}:1: a suite is a mapping with tasks and algorithms")
    try:
        return _checked(content, name)
    except ConfigurationError as error:
        raise ConfigurationError(f"{shown}:{_line(root, str(error))}: {error}") from error


def _checked(content: Mapping[str, Any], name: str) -> Suite:
    _check_keys_are_text(content, "")
    if "name" in content:
        raise ConfigurationError("unknown key 'name': a suite is named by its file")
    _check_label(name, "the suite's file")
    suite = from_mapping(Suite, {**content, "name": name, **_whole_algorithms(content)}, "")
    _check_overrides(suite.overrides, "overrides")
    _check_overrides(suite.replay, "replay")
    tasks, algorithms = suite.tasks, suite.algorithms
    if not tasks or not algorithms:
        raise ConfigurationError(f"{'algorithms' if tasks else 'tasks'} must have at least one")
    for kind, sections in {"tasks": tasks, "algorithms": algorithms}.items():
        for label, section in sections.items():
            _check_label(label, f"{kind}.{label}")
            _check_overrides(section.overrides, f"{kind}.{label}.overrides")
    for label, algorithm in algorithms.items():
        for task, more in algorithm.for_task.items():
            path = f"algorithms.{label}.for_task.{task}"
            _check_known(task, tasks, path, "task")
            _check_overrides(more, path)
    for number, figure in enumerate(suite.published):
        _check_known(figure.task, tasks, f"published.{number}.task", "task")
        _check_known(figure.algorithm, algorithms, f"published.{number}.algorithm", "algorithm")
    return suite


def _whole_algorithms(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section of algorithms with those that are a list of overrides, and nothing else, written out."""
    algorithms = content.get("algorithms")
    if not isinstance(algorithms, Mapping):
        return {}
    return {"algorithms": {k: {"overrides": v} if isinstance(v, list) else v for k, v in algorithms.items()}}


def _check_keys_are_text(content: object, path: str) -> None:
    inside = (
        content.items() if isinstance(content, Mapping) else enumerate(content) if isinstance(content, list) else ()
    )
    for key, value in inside:
        if isinstance(content, Mapping) and not isinstance(key, str):
            raise ConfigurationError(f"{path or 'the suite'} has a key that YAML reads as {key!r}: put it in quotes")
        _check_keys_are_text(value, f"{path}.{key}" if path else str(key))


def _check_label(label: str, path: str) -> None:
    if not _LABEL.fullmatch(label):
        raise ConfigurationError(f"{path} must be named by letters, digits and any of _ . +")


def _check_overrides(overrides: object, path: str) -> None:
    if not isinstance(overrides, list) or any(not isinstance(o, str) or "=" not in o for o in overrides):
        raise ConfigurationError(f"{path} must be a list of overrides like optimizer.lr=1e-3")
    if named := [o for o in overrides if not may_be_in_a_file(o)]:
        raise ConfigurationError(
            f"{path} holds {printable(named[0])}, which a file does not decide: type it, also=[...], "
            "or for the module of an environment qmix-envs trust MODULE"
        )


def _check_known(name: str, known: Sequence[str] | Mapping[str, Any], path: str, kind: str) -> None:
    if name not in known:
        raise ConfigurationError(f"{path}: unknown {kind} '{name}'{did_you_mean(name, known)}")


def _line(root: Any, message: str) -> int:
    """Return the line, from 1, of what a message's first words are about, as far as the file has it."""
    match = re.match(r"(?:unknown key |missing value: )?'?([\w.+]+)", message)
    node, line, path = root, root.start_mark.line, match[1] if match else ""
    while path:
        if not isinstance(node.value, list):
            break
        if node.id == "sequence":
            number = path.partition(".")[0]
            inside = [(str(i), item, item.start_mark) for i, item in enumerate(node.value)]
            inside = [entry for entry in inside if entry[0] == number]
        else:  # labels may have dots in them
            inside = [(k.value, v, k.start_mark) for k, v in node.value if f"{path}.".startswith(f"{k.value}.")]
        if not inside:
            break
        name, node, mark = max(inside, key=lambda entry: len(entry[0]))
        line, path = mark.line, path[len(name) + 1 :]
    return line + 1
