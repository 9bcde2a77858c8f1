"""Step single environments, in this process or in a worker process.

A worker process imports this package, :mod:`qmix_lightning.errors`, :mod:`qmix_lightning.registry`,
:mod:`qmix_lightning.types`, the modules ``moved``, ``near_modules`` and ``text`` of :mod:`qmix_lightning.runtime`,
numpy and the environment, and nothing else: no torch, no Lightning, none of this package's other dependencies.
Everything here keeps to the syntax and the standard library of Python 3.8, so that a worker may run under another
interpreter than the trainer.
``tests/worker/test_imports.py`` checks this.
"""
