"""Play greedy episodes with a trained team and print means, with an interval: the command ``qmix-eval``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qmix_lightning.cli.hydra_app import run_command
from qmix_lightning.config.env_address import env_label
from qmix_lightning.config.policy_config import validate_eval
from qmix_lightning.config.resume import refuse_untyped_interpreter
from qmix_lightning.config.run_config import InterpreterConfig
from qmix_lightning.config.tree import flatten
from qmix_lightning.errors import ConfigurationError, RunError
from qmix_lightning.runtime.regular_files import refuse_unwritable
from qmix_lightning.runtime.text import shown_path

if TYPE_CHECKING:
    from qmix_lightning.policies import StoredPolicy

__all__ = ["FRESH_SEEDS", "evaluate", "evaluate_policy", "main"]

FRESH_SEEDS = 1000
"""What is added to a run's seed: its own evaluations, which chose its best checkpoint, were played with its seed."""


def main() -> None:
    """Run the command; the console entry point."""
    run_command("evaluate", _task)


def _task(tree: dict[str, Any], folder: Path, overrides: list[str] | None) -> None:
    from qmix_lightning.policies import open_policy

    config = validate_eval(tree)
    refuse_untyped_interpreter(config, overrides)
    if config.output and Path(config.output).is_dir():
        raise ConfigurationError(f"output must be a file, and {config.output} is a folder")
    stored = open_policy(config.reference, config.run_dir)
    # Here, since they import torch: a reference that names nothing is told at once.
    from qmix_lightning.policies.card import compare
    from qmix_lightning.training.summary import print_table

    target = _target(config.output, Path(stored.source))
    result = evaluate_policy(
        stored,
        episodes=config.episodes,
        num_envs=config.num_envs,
        seed=config.seed,
        epsilon=config.epsilon,
        env=config.env,
        interpreter=config.rollout,
    )
    holds, line = True, ""
    if stored.card is not None and not config.env and not config.epsilon and _are_the_cards(stored.card, result):
        holds, line = compare(stored.card, result)
        result["card"] = {"holds": holds, "compared": line}
    if config.output == "-":
        print(json.dumps(result))
    else:
        print_table(_rows(stored.source, result) | ({"card": line} if line else {}))
        if target is not None:
            _write(result, target)
    if not holds:
        raise RunError(f"{stored.source} does not play as its card says: {line}")


def _are_the_cards(card: Mapping[str, Any], result: Mapping[str, Any]) -> bool:
    return all(card["figures"][name] == result[name] for name in ("episodes", "seed"))


def _rows(source: str, result: Mapping[str, Any]) -> dict[str, str]:
    from qmix_lightning.training.summary import with_interval

    chance = f", epsilon {result['epsilon']:g}" if result["epsilon"] else ""
    rows = {
        "policy": f"{source} ({result['env_steps']:,} env steps)",
        "algorithm": f"{result['algorithm']} on {result['env']}",
        "episodes": f"{result['episodes']}, seed {result['seed']}{chance}",
        "return": with_interval(result["return_mean"], result["return_ci95"]),
        "length": f"{result['length_mean']:.4g}",
    }
    if result["env_given"]:
        rows["given"] = ", ".join(f"env.{key}={value}" for key, value in result["env_given"].items())
    if "win_rate" in result:
        rows["win rate"] = f"{result['win_rate']:.1%}"
    return rows


def _target(output: str | None, source: Path) -> Path | None:
    """Return where the JSON is wanted, or its place beside the checkpoints of a run; a policy folder is left alone.

    Absolute: an environment may change the working folder.

    Raises:
        ConfigurationError: it cannot be written.
    """
    if not output and source.suffix != ".ckpt":
        return None
    target = Path(output or source.parent.parent / "eval.json").absolute()
    if target.is_dir():
        raise ConfigurationError(f"output must be a file, and {shown_path(target)} is a folder")
    if output != "-":
        refuse_unwritable(target, "; name another place, output=FILE, or the terminal, output=-")
    return target


def _write(result: dict[str, Any], target: Path) -> None:
    from qmix_lightning.training.summary import write_json

    try:
        write_json(result, target)
    except OSError as error:
        raise RunError(f"the result could not be written to {target}: {error.strerror}") from error
    print(f"  written to {shown_path(target)}")


def evaluate(
    reference: str | Path,
    *,
    env: Mapping[str, Any] | None = None,
    episodes: int | None = None,
    num_envs: int | None = None,
    seed: int | None = None,
    epsilon: float = 0.0,
    run_dir: str | Path | None = None,
) -> dict[str, Any]:
    """Play greedy episodes with the policy that ``reference`` names; see :func:`evaluate_policy`.

    Raises:
        ConfigurationError: a number is out of its range.
    """
    for name, value, least in (("episodes", episodes, 1), ("num_envs", num_envs, 1), ("seed", seed, 0)):
        if value is not None and value < least:
            raise ConfigurationError(f"{name} must be at least {least}, not {value}")
    if not 0 <= epsilon <= 1:
        raise ConfigurationError(f"epsilon must be between 0 and 1, not {epsilon}")
    from qmix_lightning.policies import open_policy

    stored = open_policy(reference, run_dir)
    return evaluate_policy(stored, episodes=episodes, num_envs=num_envs, seed=seed, epsilon=epsilon, env=env or {})


def evaluate_policy(
    stored: StoredPolicy,
    *,
    episodes: int | None,
    num_envs: int | None,
    seed: int | None,
    epsilon: float = 0.0,
    env: Mapping[str, Any],
    interpreter: InterpreterConfig | None = None,
) -> dict[str, Any]:
    """Play greedy episodes with an opened policy.

    Args:
        stored: the policy.
        episodes: how many; ``None``: the card's, else 100.
        num_envs: environments that step together; ``None``: the card's, else 8.
        seed: decides how the episodes start; ``None``: the card's, else the run's seed and 1000.
        epsilon: the chance of any legal action for each agent; 1 is random play, to compare with. Above 0 a stochastic
            policy is sampled.
        env: settings that differ from those that it was trained with.
        interpreter: another Python that steps the environments; ``None``: this one.

    Returns:
        ``policy``, ``env_given`` (what of ``env`` its file does not say), ``episodes``, ``return_mean``,
        ``return_ci95`` (half width), ``length_mean``, ``win_rate`` where the task has one.
    """
    import torch

    from qmix_lightning.components import env_maker
    from qmix_lightning.policies import open_network
    from qmix_lightning.rollout.evaluation import evaluate_episodes
    from qmix_lightning.rollout.rollout_policy import RolloutPolicy
    from qmix_lightning.training.intervals import mean_name, mean_with_interval
    from qmix_lightning.training.summary import versions
    from qmix_lightning.vector.factory import Backend, interpreter_of

    known: dict[str, Any] = {"episodes": 100, "num_envs": 8, "seed": stored.provenance.seed + FRESH_SEEDS}
    known |= stored.card["figures"] if stored.card else {}
    given = {"episodes": episodes, "num_envs": num_envs, "seed": seed}
    asked = known | {name: value for name, value in given.items() if value is not None}
    played, first = int(asked["episodes"]), int(asked["seed"])
    together = min(int(asked["num_envs"]), played)
    policy = stored.build()
    torch.set_num_threads(stored.provenance.num_threads)
    section = stored.env_section(env)
    other = interpreter or InterpreterConfig()
    backend = Backend(interpreter=interpreter_of(other.python, other.python_env))
    environment = env_maker(section, backend, evaluation=True, open_policy=open_network)(together)
    try:
        stored.check_env(environment.spec)
        rollout_policy = RolloutPolicy(policy, environment.num_envs, environment.device)
        stats = evaluate_episodes(environment, rollout_policy, list(range(played)), seed=first, epsilon=epsilon)
    finally:
        environment.close()
    recorded = flatten(stored.env).items()
    result: dict[str, Any] = {
        "policy": stored.source,
        "env": env_label(section),
        "env_given": {key: value for key, value in flatten(env).items() if (key, value) not in recorded},
        "algorithm": stored.algorithm["name"],
        "seed": first,
        "env_steps": stored.provenance.env_steps,
        "episodes": len(stats),
        "num_envs": together,
        "epsilon": epsilon,
    }
    for name, values in {"return": stats.returns, "length": stats.lengths, **stats.metrics}.items():
        mean, half_width, _ = mean_with_interval(values)
        result[mean_name(name)] = mean
        if name == "return":
            result["return_ci95"] = half_width if math.isfinite(half_width) else None  # one episode has no interval
    return result | {"versions": versions(section["name"])}


if __name__ == "__main__":
    main()
