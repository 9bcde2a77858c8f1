"""Train, load and evaluate from Python, without a word of Hydra: ``import qmix_lightning as ql``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qmix_lightning.config.env_address import FACTORY
from qmix_lightning.config.tree import literal
from qmix_lightning.errors import ConfigurationError
from qmix_lightning.runtime.text import shortened

if TYPE_CHECKING:
    from qmix_lightning.config.run_config import RunConfig
    from qmix_lightning.policies import Team
    from qmix_lightning.training.datamodule import ReplayDataModule
    from qmix_lightning.training.module import TeamModule

__all__ = ["TrainedRun", "build_lightning", "evaluate", "load", "train"]

Env = str | Mapping[str, Any] | Callable[..., Any]
"""An environment: a name, an address ``module:factory``, a section (``{"name": "lbf", "task": ...}``) or a factory."""


@dataclass(frozen=True)
class TrainedRun:
    """A run that has ended.

    Attributes:
        folder: where it wrote.
        summary: the content of its ``summary.json``.
    """

    folder: Path
    summary: dict[str, Any]

    @property
    def best(self) -> Path:
        """The checkpoint of the best evaluation; may not exist if the run never evaluated."""
        return self.folder / "checkpoints" / "best.ckpt"

    @property
    def last(self) -> Path:
        """The checkpoint that the run can be resumed from."""
        return self.folder / "checkpoints" / "last.ckpt"

    def load(self) -> Team:
        """Return the team of the best evaluation, else the last."""
        return load(self.folder)


def train(
    env: Env | None = None,
    algorithm: str | Mapping[str, Any] | None = None,
    *,
    run_dir: str | Path | None = None,
    resume: bool | str | Path = False,
    overrides: Sequence[str] = (),
    **groups: Any,
) -> TrainedRun:
    """Train a team; the same run as the command ``qmix-train`` with the same settings.

    Args:
        env: a name, an address ``module:factory``, a mapping with ``name`` and settings, or a factory.
        algorithm: a name, or a mapping with ``name`` and settings; ``None``: ``qmix``.
        run_dir: where the run writes; ``None``: a new folder under ``outputs/``.
        resume: go on with the run in ``run_dir`` (true), or from a checkpoint (its path). What is left out, ``env``
            too, is as the run began; a factory object is given again.
        overrides: settings as they are typed after ``qmix-train``.
        **groups: settings by the names of ``conf/``: numbers at the top (``seed=3``, ``total_env_steps=1e6``), the
            choice of a group (``preset="pymarl"``), or a mapping (``optimizer={"lr": 1e-3}``; with ``name`` it is a
            choice too).

    Raises:
        ConfigurationError: a setting does not exist or fit; nothing was written.

    Example:
        >>> import qmix_lightning as ql
        >>> run = ql.train("two_step", total_env_steps=400, logger="none")
        collecting: ...
        >>> run.summary["status"]
        'completed'
    """
    from qmix_lightning.commands.train import train as train_composed

    typed = _typed(env, algorithm, groups, overrides)
    if run_dir is not None:
        typed.append(f"run_dir={literal(run_dir)}")
    if resume:
        typed.append(f"ckpt_path={'last' if resume is True else literal(resume)}")
    config = _composed(typed)
    folder = Path(str(config.run_dir))
    return TrainedRun(folder, train_composed(config.to_dict(), folder, typed))


def build_lightning(
    env: Env,
    algorithm: str | Mapping[str, Any] | None = None,
    *,
    run_dir: str | Path | None = None,
    overrides: Sequence[str] = (),
    **groups: Any,
) -> tuple[TeamModule, ReplayDataModule]:
    """Return a LightningModule and a data module for a ``pl.Trainer`` of your own, which stops at their budget.

    Settings are those of :func:`train`; what the command adds (the run's folder, exact resume, logs) is the trainer's.

    Example:
        >>> import pytorch_lightning as pl
        >>> import qmix_lightning as ql
        >>> module, data = ql.build_lightning("two_step", total_env_steps=200, eval_interval=100)
        collecting: ...
        >>> trainer = pl.Trainer(accelerator="cpu", max_epochs=-1, logger=False, enable_checkpointing=False,
        ...                      enable_progress_bar=False, enable_model_summary=False)
        >>> trainer.fit(module, datamodule=data)
        >>> data.finished
        True
    """
    from qmix_lightning.build import build_run
    from qmix_lightning.training.lightning_parts import quieten_lightning

    quieten_lightning()
    config = _composed(_typed(env, algorithm, groups, overrides))
    run = build_run(config, Path(str(run_dir or config.run_dir)))
    return run.module, run.data


def _typed(env: Env | None, algorithm: Any, groups: Mapping[str, Any], overrides: Sequence[str]) -> list[str]:
    """Return what was asked for as it is typed after ``qmix-train``.

    Raises:
        ConfigurationError: ``overrides`` is one text, whose letters would be taken for overrides.
    """
    if isinstance(overrides, str):
        raise ConfigurationError(f"overrides must be a list of texts: overrides={overrides.split()}")
    typed = [*([] if env is None else _overrides("env", _env_section(env))), *_overrides("algorithm", algorithm)]
    for name, value in groups.items():
        typed += _overrides(name, value)
    return [*typed, *overrides]


def _composed(typed: list[str]) -> RunConfig:
    from qmix_lightning.cli.compose import composer

    with composer() as compose:
        (config,) = compose(typed, None)
    return config


def load(
    reference: str | Path, *, run_dir: str | Path | None = None, num_envs: int = 1, seed: int = 0, device: str = "cpu"
) -> Team:
    """Return the team that ``reference`` names, ready to act.

    Args:
        reference: a policy folder, a ``.ckpt``, a run folder (its best checkpoint, else its last), ``last`` or
            ``best``, ``hf://owner/name@revision``, or a name of the zoo.
        run_dir: the run that ``last`` and ``best`` belong to.
        num_envs: environments that it acts in at once.
        seed: decides what it explores.
        device: where it acts.

    Raises:
        CheckpointError: it is missing, damaged, or holds what a file must not decide.
        ConfigurationError: ``num_envs`` is below 1.

    Example:
        >>> import qmix_lightning as ql
        >>> team = ql.load("two_step")
        >>> team.spec.n_agents
        2
    """
    from qmix_lightning.policies import open_policy

    if num_envs < 1:
        raise ConfigurationError(f"num_envs must be at least 1, not {num_envs}")
    return open_policy(reference, run_dir).team(num_envs, seed=seed, device=device)


def evaluate(
    reference: str | Path,
    *,
    env: Env | None = None,
    episodes: int | None = None,
    seed: int | None = None,
    epsilon: float = 0.0,
    num_envs: int | None = None,
    run_dir: str | Path | None = None,
) -> dict[str, Any]:
    """Play greedy episodes with a trained team, and return means.

    Args:
        reference: as for :func:`load`.
        env: where; ``None``: the environment that it was trained in. Settings that differ from that are a mapping.
        episodes: how many; ``None``: as many as its card says, else 100.
        seed: decides how the episodes start; ``None``: the card's, else another one than chose the best checkpoint.
        epsilon: the chance of any legal action for each agent; 1 is random play. Above 0, a stochastic policy samples.
        num_envs: environments that step together; ``None``: the card's, else 8.
        run_dir: the run that ``last`` and ``best`` belong to.

    Returns:
        ``return_mean``, ``return_ci95`` (half the width of the 95 % interval), ``length_mean``, ``win_rate`` where the
        task has one, and how they were made.

    Example:
        >>> import qmix_lightning as ql
        >>> ql.evaluate("two_step", episodes=4)["return_mean"]
        8.0
    """
    from qmix_lightning.commands.evaluate import evaluate as evaluate_reference

    changes = None if env is None else _env_section(env)
    return evaluate_reference(
        reference,
        env=changes,
        episodes=episodes,
        seed=seed,
        epsilon=epsilon,
        num_envs=num_envs,
        run_dir=run_dir,
    )


def _env_section(env: Env) -> dict[str, Any]:
    """Return an environment as a section of the configuration; a factory object is registered."""
    if isinstance(env, str):
        return {"name": "pettingzoo", "id": env} if ":" in env else {"name": env}
    if isinstance(env, Mapping):
        return dict(env)
    from qmix_lightning.environment import register

    if not callable(env):
        raise ConfigurationError(
            "env must be a name, an address module:factory, a mapping, or a class or function that returns an "
            f"environment, not {shortened(repr(env))}"
        )
    register(FACTORY, env, overwrite=True)
    return {"name": FACTORY}


def _overrides(name: str, value: Any) -> list[str]:
    """Return a setting, the choice of a group, or both, as they are typed."""
    if value is None and name == "algorithm":
        return []
    if callable(value):
        raise ConfigurationError(
            f"{name} must be as it is typed on the command line, not {shortened(repr(value))}: give a component of "
            "your own a name first, by MIXERS.register and the like (docs/new_algorithm.md)"
        )
    if not isinstance(value, Mapping):
        return [f"{name}={literal(value)}"]
    typed = _overrides(name, value["name"]) if "name" in value else []
    for key, inner in value.items():
        if key != "name":
            typed += _overrides(f"{name}.{key}", inner)
    return typed
