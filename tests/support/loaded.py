"""Prints which of the modules that are typed are loaded where a run was built, as a command of its own."""

import sys

import qmix_lightning.build
import qmix_lightning.envs.two_step  # noqa: F401

if __name__ == "__main__":
    print([name for name in sys.argv[1:] if name in sys.modules])
