"""Train cooperative teams of agents on PyTorch Lightning: QMIX and its family.

Importing the package is cheap on purpose: torch and Lightning are loaded by the modules that need them.
"""

from qmix_lightning.runtime.moved import keep_modules

__version__ = "0.1.0"

keep_modules()
