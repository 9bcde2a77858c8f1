"""Write a trained team as a policy folder and as programs for others: the command ``qmix-export``."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qmix_lightning.cli.hydra_app import run_command
from qmix_lightning.config.policy_config import ExportConfig, validate_export
from qmix_lightning.config.tree import key_of

if TYPE_CHECKING:
    from qmix_lightning.policies import StoredPolicy

__all__ = ["export", "main"]


def main() -> None:
    """Run the command; the console entry point."""
    run_command("export", _task)


def _task(tree: dict[str, Any], folder: Path, overrides: list[str] | None) -> None:
    config = validate_export(tree)
    for line in _without_effect(config, list(map(key_of, overrides or []))):
        print(line, file=sys.stderr, flush=True)
    export(config)


def _without_effect(config: ExportConfig, typed: list[str]) -> list[str]:
    """Return a line for each typed key that changes nothing beside the others."""
    plays = config.card or (config.programs and config.verify_steps)
    wanted = {
        "card=true": [] if config.card else ["task", "command", "commit", "episodes", "seed"],
        "programs=onnx or torch_export": [] if config.programs else ["verify_steps"],
        "card=true, and for programs, which it verifies": [] if plays else ["num_envs", "env"],
    }
    return [
        f"{name} changes nothing: it is for {use}"
        for use, unused in wanted.items()
        for name in typed
        if name.partition(".")[0] in unused
    ]


def export(config: ExportConfig) -> None:
    """Write a policy folder, with a card and programs if they are asked for.

    Raises:
        ConfigurationError: the output is taken, or an extra is missing.
        RunError: a program does not choose what the policy chooses; nothing was written.
    """
    from qmix_lightning.policies import open_policy

    stored = open_policy(config.reference, config.run_dir)
    # Here, since it imports torch: a reference that names nothing is told at once.
    from qmix_lightning.policies.folder import refuse_taken, write_policy_folder

    output = Path(config.output)
    refuse_taken(output)
    stored.build()  # refuses what cannot act
    if config.programs and config.verify_steps:
        stored.env_section(config.env)  # refuses what they could not play, before they are made
    if not config.learner:
        stored = replace(stored, learner_weights=None, optimizer=None)
    if config.card:
        stored = replace(stored, card=_card(stored, config))
    with tempfile.TemporaryDirectory() as temporary:
        programs = None
        if config.programs:
            from qmix_lightning.policies.programs import export_programs

            programs = Path(temporary)
            for line in export_programs(
                stored,
                programs,
                kinds=config.program_kinds,
                verify_steps=config.verify_steps,
                num_envs=config.num_envs,
                env=config.env,
            ):
                print(line, flush=True)
        write_policy_folder(stored, output, programs)
    print(f"written to {output}: {', '.join(sorted(path.name for path in output.iterdir()))}")


def _card(stored: StoredPolicy, config: ExportConfig) -> dict[str, Any]:
    from qmix_lightning.commands.evaluate import FRESH_SEEDS, evaluate_policy
    from qmix_lightning.policies.card import make_card
    from qmix_lightning.training.summary import with_interval

    seed = stored.provenance.seed + FRESH_SEEDS if config.seed is None else config.seed
    result = evaluate_policy(stored, episodes=config.episodes, num_envs=config.num_envs, seed=seed, env=config.env)
    shown = with_interval(result["return_mean"], result["return_ci95"])
    won = f", win rate {result['win_rate']:.1%}" if "win_rate" in result else ""
    print(f"card: return {shown}{won}, {result['episodes']} episodes, seed {result['seed']}", flush=True)
    task = config.task or f"{stored.algorithm['name']} on {stored.env['name']}"
    return make_card(result, task=task, command=config.command, commit=config.commit)


if __name__ == "__main__":
    main()
