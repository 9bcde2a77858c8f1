"""Print what a person wants to know when a run begins and when it has ended."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.loggers import TensorBoardLogger

from qmix_lightning.config.env_address import FACTORY
from qmix_lightning.config.resume import imported
from qmix_lightning.config.run_config import RunConfig
from qmix_lightning.config.tree import literal
from qmix_lightning.config.trust import is_name, shipped_section, texts
from qmix_lightning.runtime.text import shown_path
from qmix_lightning.training.summary import print_table, with_interval

__all__ = ["print_end", "print_start", "resume_command", "shown_rate"]


def print_start(trainer: Trainer, run_dir: Path, views: Iterable[str]) -> None:
    """Print where a run writes and how to look at it while it goes on.

    Args:
        trainer: whose loggers they are.
        run_dir: the run's folder.
        views: how to look at it in its trackers.
    """
    print(f"run: {shown_path(run_dir.resolve())}")
    boards = [logger.log_dir for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    for view in (*(f"tensorboard --logdir {_quoted(folder)}" for folder in boards), *views):
        print(f"watch: {view}")
    print(end="", flush=True)


def print_end(summary: dict[str, Any], config: RunConfig, run_dir: Path) -> None:
    """Print the table at the end of a run, with the commands that come next."""
    env_rate = shown_rate(summary["env_steps_per_s"])
    rows = {
        "algorithm": f"{summary['algorithm']} on {summary['env']}, seed {summary['seed']}",
        "ended by": summary["why"],
        "env steps": f"{summary['env_steps']:,} in {_seconds(summary['wall_s'])} ({env_rate})",
        "updates": f"{summary['updates']:,} ({shown_rate(summary['updates_per_s'])})",
        "time": _times(summary["seconds"]),
        **_results(summary),
    }
    faults = ", ".join(f"{number} {kind}" for kind, number in summary["faults"].items())
    rows |= {"faults": faults} if faults else {}
    rows["written to"] = shown_path(run_dir.resolve())
    print_table(rows)
    for number, command in enumerate(_next(summary, config, run_dir)):
        print(f"  {'next' if number == 0 else '':<{max(map(len, rows))}}  {command}")
    print(end="", flush=True)


def shown_rate(in_a_second: float) -> str:
    """Return a rate as people read it; of slow runs not a mere 0."""
    return f"{in_a_second:,.0f}/s" if in_a_second >= 10 else f"{in_a_second:.2g}/s"


def _results(summary: dict[str, Any]) -> dict[str, str]:
    """Return the rows about evaluations: the last one, and the best where that is another one."""
    result, best = summary["eval"], summary["best"] or {}
    if not result:
        return {}
    last = with_interval(result["return_mean"], result["return_ci95"])
    rows = {"eval return": f"{last}, {result['episodes']} episodes"}
    if "win_rate" in result:
        rows["eval win rate"] = f"{result['win_rate']:.1%}"
    if "sparse_return_mean" in result:
        rows["eval sparse return"] = f"{result['sparse_return_mean']:.4g}, without shaping"
    if best:
        win = f", win rate {best['win_rate']:.1%}" if "win_rate" in best else ""
        rows["best return"] = f"{best['return_mean']:.4g}{win}, after {best['env_steps']:,.0f} env steps"
    return rows


def _next(summary: dict[str, Any], config: RunConfig, run_dir: Path) -> list[str]:
    """Return what to type next, as far as there is something to evaluate or to go on with."""
    again = _typed_again(config)
    commands = []
    if (run_dir / "checkpoints" / "best.ckpt").exists():
        if config.env["name"] == FACTORY:
            commands.append(f"ql.load({_text(run_dir)}), ql.evaluate({_text(run_dir)})")
        else:
            commands.append(f"qmix-eval ckpt_path={_quoted(run_dir / 'checkpoints' / 'best.ckpt')}{again}")
            if importlib.util.find_spec("qmix_lightning.commands.watch") is not None:
                commands.append(f"qmix-watch {_quoted(run_dir)}{again}")
    if (run_dir / "checkpoints" / "last.ckpt").exists():
        commands.append(resume_command(config, run_dir, _more(summary, config)))
    return commands


def _more(summary: dict[str, Any], config: RunConfig) -> str:
    """Return what to type so that a run that was ended by a limit does not end there again."""
    ended_by = summary["ended_by"]
    if ended_by == "budget":
        budget = config.total_env_steps
        if 2 * budget <= summary["env_steps"]:  # a resumed run was given less than it had taken
            budget = summary["env_steps"]
        return f" total_env_steps={2 * budget}"
    if ended_by == "max_steps":
        return f" trainer.max_steps={2 * config.trainer['max_steps']}"
    return " trainer.max_time=null" if ended_by == "max_time" else ""


def resume_command(config: RunConfig, run_dir: Path, more: str = "") -> str:
    """Return the command that goes on with a run, with ``more`` typed; in Python, where a factory object is needed."""
    if config.env["name"] == FACTORY:
        typed = f", overrides={more.split()}" if more else ""
        return f"ql.train(FACTORY, run_dir={_text(run_dir)}, resume=True{typed})"
    again = _typed_again(config) + _loggers_again(config)
    return f"qmix-train run_dir={_quoted(run_dir)} ckpt_path=last{again}{more}"


def _typed_again(config: RunConfig) -> str:
    """Return the settings that a checkpoint does not decide, as they are typed."""
    again = "".join(f" env.{key}={value}" for key, value in imported(config.env).items())
    rollout = config.rollout
    if rollout.python is not None:
        again += f" rollout.python={shlex.quote(rollout.python)}"
    if rollout.python_env:
        again += f" rollout.python_env=[{','.join(rollout.python_env)}]"
    return again


def _loggers_again(config: RunConfig) -> str:
    """Return what is set of loggers, as it is typed; but not paths and addresses, which may hold a password."""
    again, whole = "", config.to_dict()
    for name, settings in config.logger.items():
        shipped = shipped_section("logger", name, whole)
        if shipped is not None and settings is not None:
            changed = {k: v for k, v in settings.items() if v != shipped.get(k) and all(map(is_name, texts(v)))}
            again += "".join(f" {shlex.quote(f'logger.{name}.{k}={literal(v)}')}" for k, v in changed.items())
    return again


def _quoted(path: str | Path) -> str:
    return shlex.quote(shown_path(Path(path).resolve()))


def _text(path: Path) -> str:
    return repr(shown_path(path.resolve()))


def _times(seconds: dict[str, float]) -> str:
    names = {"act": "acting", "env": "environments", "update": "updates", "evaluate": "evaluations"}
    return ", ".join(f"{names[name]} {_seconds(value)}" for name, value in seconds.items())


def _seconds(wall: float) -> str:
    return f"{wall:.0f} s" if wall >= 10 else f"{wall:.1f} s"
