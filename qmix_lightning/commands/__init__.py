"""Hold the commands, one file each; ``python -m qmix_lightning`` lists them."""

COMMANDS = {
    "train": "train a team, resume a run, sweep over many",
    "evaluate": "play greedy episodes with a trained team",
    "watch": "watch a trained team: a video, a window, a page that shows why it acts",
    "export": "write a trained team as a folder, and as programs that need none of this",
    "import_policy": "take over a team that PyMARL has trained",
    "bench": "run a suite of tasks, algorithms and seeds, and sum it up",
    "report": "sum up runs: tables, figures, a page",
    "envs": "list, show and check environments, write a new one",
}
"""Name of a module here -> what it does. Each has a ``main()``, which is also a console script."""
