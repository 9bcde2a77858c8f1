"""Hold the commands, one file each; ``python -m qmix_lightning`` lists them."""

COMMANDS = {
    "train": "train a team, resume a run, sweep over many",
    "evaluate": "play greedy episodes with a trained team",
    "bench": "run a suite of tasks, algorithms and seeds, and sum it up",
    "envs": "list, show and check environments, write a new one",
}
"""Name of a module here -> what it does. Each has a ``main()``, which is also a console script."""
