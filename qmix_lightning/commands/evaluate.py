"""Play greedy episodes with a checkpoint's policy and print means, with an interval: the command ``qmix-eval``."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

from qmix_lightning.cli.hydra_app import run_command
from qmix_lightning.config.resume import imported
from qmix_lightning.config.run_config import validate_eval
from qmix_lightning.config.tree import flatten
from qmix_lightning.errors import CheckpointError, ConfigurationError, RunError
from qmix_lightning.runtime.text import did_you_mean, printable

__all__ = ["evaluate", "main"]


def main() -> None:
    """Run the command; the console entry point."""
    run_command("evaluate", _task)


def _task(tree: dict[str, Any], folder: Path, overrides: list[str] | None) -> None:
    from qmix_lightning.training.summary import print_table, with_interval, write_json

    config = validate_eval(tree)
    target = Path(config.output or Path(config.ckpt_path).parent.parent / "eval.json")
    if target.is_dir():
        raise ConfigurationError(f"output must be a file, and {target} is a folder")
    result = evaluate(
        config.ckpt_path, episodes=config.episodes, num_envs=config.num_envs, seed=config.seed, env=config.env
    )
    rows = {
        "checkpoint": f"{config.ckpt_path} ({result['env_steps']:,} env steps)",
        "algorithm": f"{result['algorithm']} on {result['env']}",
        "episodes": f"{result['episodes']}, seed {result['seed']}",
        "return": with_interval(result["return_mean"], result["return_ci95"]),
        "length": f"{result['length_mean']:.4g}",
    }
    if "win_rate" in result:
        rows["win rate"] = f"{result['win_rate']:.1%}"
    if config.output == "-":
        print(json.dumps(result))
        return
    print_table(rows)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_json(result, target)
    except OSError as error:
        raise RunError(f"the result could not be written to {target}: {error}") from error
    print(f"  written to {target}")


def evaluate(ckpt_path: str, *, episodes: int, num_envs: int, seed: int | None, env: dict[str, Any]) -> dict[str, Any]:
    """Play greedy episodes with the policy of a checkpoint.

    Args:
        ckpt_path: a ``.ckpt`` of this package.
        episodes: how many.
        num_envs: environments that step together.
        seed: decides how the episodes start; ``None`` takes the run's seed, and so its evaluation episodes.
        env: settings that differ from those the checkpoint was trained with.

    Returns:
        ``episodes``, ``return_mean``, ``return_ci95`` (half width), ``length_mean``, ``win_rate`` where the task has
        one.
    """
    import torch

    from qmix_lightning.checkpoint.files import read_checkpoint
    from qmix_lightning.checkpoint.manifest import not_finite
    from qmix_lightning.components import build_policy, check_sizes, env_maker, policy_class
    from qmix_lightning.config.resume import fill_missing_defaults
    from qmix_lightning.config.run_config import validate
    from qmix_lightning.config.trust import trusted_config
    from qmix_lightning.rollout.evaluation import evaluate_episodes
    from qmix_lightning.rollout.rollout_policy import RolloutPolicy
    from qmix_lightning.training.metrics import MeanWithInterval
    from qmix_lightning.training.summary import versions

    payload = read_checkpoint(ckpt_path)
    config = validate(fill_missing_defaults(trusted_config(payload["config"], ckpt_path), ckpt_path))
    if (config.num_threads or 1) > 1024:
        raise CheckpointError(f"{ckpt_path} asks for {config.num_threads} threads")
    prefix = "learner.policy."
    weights = {k.removeprefix(prefix): v for k, v in payload["state_dict"].items() if str(k).startswith(prefix)}
    if wrong := not_finite(weights):
        raise CheckpointError(
            f"{ckpt_path} holds NaN or infinity in '{wrong[0]}' and {len(wrong) - 1} more: the run had diverged"
        )
    torch.set_num_threads(config.num_threads or 1)
    section = _env_section(config.env, env, ckpt_path)
    environment = env_maker(section, evaluation=True)(min(num_envs, episodes))
    try:
        spec = environment.spec
        _check_spec(payload["spec"], spec.to_dict(), ckpt_path)
        make = partial(build_policy, config.agent, spec, policy_class(config.algorithm["name"]))
        check_sizes(make, weights, "", ckpt_path)
        policy = make()
        try:
            policy.load_state_dict(weights)
        except RuntimeError as error:
            raise CheckpointError(
                f"{ckpt_path} does not fit its own configuration: {str(error).splitlines()[-1]}"
            ) from None
        used_seed = config.seed if seed is None else seed
        rollout_policy = RolloutPolicy(policy, environment.num_envs, environment.device)
        stats = evaluate_episodes(environment, rollout_policy, list(range(episodes)), seed=used_seed)
    finally:
        environment.close()
    result: dict[str, Any] = {
        "env": section["name"],
        "algorithm": config.algorithm["name"],
        "seed": used_seed,
        "env_steps": int(payload["env_steps"]),
        "episodes": len(stats),
    }
    for name, values in {"return": stats.returns, "length": stats.lengths, **stats.metrics}.items():
        metric = MeanWithInterval()
        metric.update(values)
        mean, half_width, _ = metric.compute()
        result["win_rate" if name == "won" else f"{name}_mean"] = mean
        if name == "return":
            result["return_ci95"] = half_width if math.isfinite(half_width) else None  # one episode has no interval
    return result | {"versions": versions(section["name"])}


def _env_section(saved: dict[str, Any], changes: dict[str, Any], path: str) -> dict[str, Any]:
    """Return the checkpoint's ``env`` section with what was typed on top."""
    unknown = [k for k in changes if k not in saved and k != "kwargs"]
    if unknown:
        raise ConfigurationError(f"unknown key 'env.{unknown[0]}'{did_you_mean(unknown[0], saved, 'env.')}")
    section = {**saved, **changes}
    if "kwargs" in saved or "kwargs" in changes:
        section["kwargs"] = {**(saved.get("kwargs") or {}), **(changes.get("kwargs") or {})}
    if not isinstance(section.get("name"), str):
        raise ConfigurationError("env.name must be the name of an environment")
    typed = flatten(changes)
    for key, value in imported(section).items():
        if key not in typed:
            what = f"names the environment '{printable(value)}', which is not in the registry; to let it be imported"
            if key not in ("id", "module"):
                what = f"holds '{printable(value)}', which a file does not decide; to let it be used"
            raise ConfigurationError(f"{path} {what}, say env.{printable(key)}={printable(value)}")
    return section


def _check_spec(saved: dict[str, Any], now: dict[str, Any], path: str) -> None:
    for key in ("n_agents", "n_actions", "obs_dim"):
        if saved[key] != now[key]:
            raise ConfigurationError(f"{path} was trained with {key}={saved[key]}, this environment has {now[key]}")


if __name__ == "__main__":
    main()
