"""Take over a team that another program has trained: the command ``qmix-import``."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from qmix_lightning.cli.hydra_app import run_without_hydra
from qmix_lightning.errors import ConfigurationError
from qmix_lightning.runtime.text import did_you_mean

__all__ = ["import_pymarl", "main"]

_HELP = """\
qmix-import: take over a team that another program has trained, as a policy folder.

  qmix-import pymarl FOLDER env=smac env.map_name=3m output=my_team

  FOLDER       of PyMARL, PyMARL2 or EPyMARL: agent.th, and mixer.th and opt.th if they are there
  env=...      the environment that it was trained in, as for qmix-train; other settings of qmix-train may follow
  output       the policy folder to write; must not hold anything yet
  config       their config.json (FOLDER/config.json, if it is there)

The agents' network, the mixer and RMSprop's state are carried over; the target networks, which are not saved there, are
copies. Then: qmix-eval my_team, or go on training with the command that is printed. docs/coming_from/pymarl.md has a
table of their settings and ours.
"""

_SOURCES = ("pymarl",)


def main() -> None:
    """Run the command; the console entry point."""
    run_without_hydra(_import)


def _import(arguments: list[str]) -> None:
    if not arguments or {"-h", "--help", "help"} & set(arguments):
        print(_HELP, end="")
        return
    # PyMARL2 itself calls its folders so: qmix_env=8_adam_td_lambda__2021-03-01_12-00-00.
    names = [a for a in arguments if "=" not in a or os.path.exists(os.path.join(a, "agent.th"))]
    settings = [a for a in arguments if a not in names]
    own = dict(a.split("=", 1) for a in settings if a.startswith(("output=", "config=")))
    typed = [a for a in settings if not a.startswith(("output=", "config="))]
    if names[:1] and names[0] not in _SOURCES:
        raise ConfigurationError(f"nothing is imported from '{names[0]}'{did_you_mean(names[0], _SOURCES)}")
    if len(names) != 2 or not own.get("output") or not any(a.startswith("env=") for a in typed):
        raise ConfigurationError("it is: qmix-import pymarl FOLDER env=... output=...; --help tells more")
    config = Path(own["config"]) if own.get("config") else None
    for line in import_pymarl(Path(names[1]), Path(own["output"]), typed, config):
        print(line, flush=True)


def import_pymarl(folder: Path, output: Path, typed: list[str], config: Path | None = None) -> list[str]:
    """Write a policy folder of what PyMARL has saved.

    Args:
        folder: with ``agent.th``.
        output: the policy folder to write.
        typed: settings of ``qmix-train``, the environment among them.
        config: their ``config.json``; ``None``: that in the folder.

    Returns:
        Lines that say what was carried over, and how training goes on.

    Raises:
        CheckpointError: the files are missing, damaged, or of another network or environment.
    """
    from qmix_lightning.cli.compose import composer
    from qmix_lightning.components import env_maker
    from qmix_lightning.policies import StoredPolicy
    from qmix_lightning.policies.folder import refuse_taken, write_policy_folder
    from qmix_lightning.policies.pymarl import read_pymarl
    from qmix_lightning.policies.stored import Provenance

    refuse_taken(output)
    run = read_pymarl(folder, config)
    with composer() as compose:
        (asked,) = compose(typed, None)
        env = env_maker(asked.env)(1)
        try:
            spec = env.spec
        finally:
            env.close()
        theirs = run.overrides(spec)
        (settings,) = compose([*theirs, *typed], None)
    stored = StoredPolicy(
        source=str(folder),
        spec=spec,
        env=settings.env,
        agent=settings.agent,
        mixer=settings.mixer,
        algorithm=settings.algorithm,
        weights=run.weights(),
        learner_weights=run.learner_weights(),
        provenance=Provenance(seed=settings.seed),
        optimizer=run.square_avg,
    )
    stored.build_learner()  # refuses what does not fit
    write_policy_folder(stored, output)
    state = (
        "RMSprop's state"
        if run.square_avg
        else "no state of Adam (it begins anew)"
        if run.adam
        else "no state of RMSprop"
    )
    mixer = "its mixer" if run.mixer else "no mixer"
    return [
        f"carried over from {folder}: the agents' network, {mixer}, {state}; targets are copies",
        f"written to {output}",
        f"to go on: {shlex.join(['qmix-train', *theirs, *typed, f'init_from={output}'])}",
    ]


if __name__ == "__main__":
    main()
