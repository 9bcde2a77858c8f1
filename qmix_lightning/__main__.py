"""Run ``python -m qmix_lightning COMMAND ...``: the same as the console scripts ``qmix-train``, ``qmix-eval``, ..."""

from __future__ import annotations

import runpy
import sys

from qmix_lightning import __version__
from qmix_lightning.commands import COMMANDS
from qmix_lightning.runtime.text import did_you_mean

ALIASES = {"eval": "evaluate", "import": "import_policy"}


def main() -> None:
    """Hand the arguments after the command's name over to the command."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help", "help"):
        print("python -m qmix_lightning COMMAND ...; COMMAND --help tells more\n")
        lines = {**COMMANDS, **{alias: f"the same as {name}" for alias, name in ALIASES.items()}}
        width = max(map(len, lines)) + 2
        print("\n".join(f"  {name:<{width}}{summary}" for name, summary in lines.items()))
        return
    if sys.argv[1] == "--version":
        print(f"qmix-lightning {__version__}")
        return
    typed = sys.argv.pop(1)
    name = ALIASES.get(typed, typed)
    if name not in COMMANDS:
        print(f"error: there is no command '{typed}'{did_you_mean(typed, [*COMMANDS, *ALIASES])}", file=sys.stderr)
        sys.exit(2)
    # Not a plain call: Lightning starts its other ranks by the name of the module that runs as __main__.
    runpy.run_module(f"qmix_lightning.commands.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
