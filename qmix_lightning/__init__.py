"""Train teams by cooperative multi-agent reinforcement learning on PyTorch Lightning: QMIX and its family.

Importing the package is cheap on purpose: torch and Lightning are loaded by the modules that need them.
"""

import importlib
import importlib.util
import sys
from typing import Any

__version__ = "0.1.0"


def _keep_importable(name: str, moved_to: str) -> None:
    """Let ``qmix_lightning.<name>``, which is now ``moved_to``, be imported and run with ``python -m`` as before.

    Nothing is loaded here; a name of it is looked up in the module that it has become.
    """
    source = __file__.replace("__init__.py", f"{moved_to.replace('.', '/')}.py")
    spec = importlib.util.spec_from_file_location(f"{__name__}.{name}", source)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)

    def look_up(attribute: str) -> Any:
        return getattr(importlib.import_module(f"{__name__}.{moved_to}"), attribute)

    vars(module)["__getattr__"] = look_up
    vars(module)["__path__"] = []  # or python -m would warn that the module is there before it has run
    sys.modules[spec.name] = module
    globals()[name] = module


_keep_importable("train", "commands.train")
_keep_importable("evaluate", "commands.evaluate")
