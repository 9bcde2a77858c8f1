"""qmix-lightning: cooperative multi-agent Q-learning on PyTorch Lightning.

Importing the package is cheap on purpose: torch and Lightning are loaded by the modules that need them.
"""

__version__ = "0.1.0"
