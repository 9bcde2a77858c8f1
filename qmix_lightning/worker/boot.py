"""Start a worker under another interpreter; run by its path, with ``-I``.

That interpreter has its own packages and none of the trainer's: this package's files are found by their folders, which
are not put on the path, since the trainer's other packages lie beside them. Older Pythons read this file too, to be
told that they are too old.
"""

# pyright: basic, reportOptionalMemberAccess=false, reportArgumentType=false, reportAttributeAccessIssue=false
# No annotations: the oldest Pythons read it.

import importlib.util
import os
import socket
import sys

OLDEST = (3, 8)
UNSUITABLE = 3
"""Exit status: this interpreter runs no worker; the reason is the last line on standard error."""


def _refuse(reason):
    sys.stderr.write(reason + "\n")
    sys.stderr.flush()
    sys.exit(UNSUITABLE)


def _load_package(name, folder):
    """Import the package whose files are in ``folder``, wherever that is."""
    file = os.path.join(folder, "__init__.py")
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=[folder])
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def main(arguments):
    """Run a worker.

    Args:
        arguments: file descriptors of the connection, the lifeline and the log; the folders of ``qmix_lightning`` and
            of ``qmix_lightning.envs``.
    """
    if sys.version_info[:2] < OLDEST:
        _refuse("Python %d.%d or newer is needed, and this is %d.%d" % (OLDEST + sys.version_info[:2]))
    try:
        import numpy  # noqa: F401
    except ImportError as error:
        _refuse("it cannot import numpy (%s): %s -m pip install numpy" % (error, sys.executable))
    connection, lifeline, log = (int(argument) for argument in arguments[:3])
    package, environments = arguments[3:]
    _load_package("qmix_lightning", package).envs = _load_package("qmix_lightning.envs", environments)
    from qmix_lightning.worker.loop import work

    work(socket.socket(fileno=connection), socket.socket(fileno=lifeline), os.dup(2), log)


if __name__ == "__main__":
    main(sys.argv[1:])
