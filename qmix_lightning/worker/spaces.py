"""Read Gymnasium's spaces without importing Gymnasium.

A space is recognised by the names of its classes, and flattened by the functions of the library that it comes from.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from qmix_lightning.errors import EnvironmentContractError
from qmix_lightning.runtime.text import shortened

__all__ = ["dict_space", "is_space", "observation_reader", "to_vector"]

LIBRARIES = ("gymnasium", "gym")


def is_space(value: Any, kind: str = "Space") -> bool:
    """Tell whether ``value`` is a space of the class ``kind`` (``Box``, ``Discrete``, ...) or derived from it."""
    return any(c.__name__ == kind and c.__module__.partition(".")[0] in LIBRARIES for c in type(value).__mro__)


def to_vector(value: Any, what: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Return an array of real numbers as one vector; a copy only where it has to be.

    Args:
        value: what an environment gave.
        what: names it in messages.
        shape: what it must have; ``None``: any.

    Raises:
        EnvironmentContractError: it has another shape, or holds something else than real numbers.
    """
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":  # numpy would drop an imaginary part, and read numbers out of texts
        raise EnvironmentContractError(f"{what} holds {array.dtype}, real numbers are needed")
    if shape is not None and array.shape != shape:
        raise EnvironmentContractError(f"{what} has shape {list(array.shape)}, its space says {list(shape)}")
    return array.ravel()


def observation_reader(space: Any, what: str) -> tuple[int, Callable[[Any], np.ndarray]]:
    """Return the flat size of ``space`` and the function that flattens its values, as Gymnasium's ``flatten`` does.

    Args:
        space: any space with a fixed flat size.
        what: names the value in messages.

    Raises:
        EnvironmentContractError: the space has no fixed flat size. The function raises it for what does not fit.
    """
    if is_space(space, "Box"):
        shape = tuple(space.shape)
        return int(np.prod(shape)), lambda value: to_vector(value, what, shape)
    utils = importlib.import_module(f"{_library_of(space)}.spaces.utils")
    try:
        size = utils.flatdim(space)
    except (NotImplementedError, ValueError):
        raise EnvironmentContractError(
            f"{what} has the space {shortened(space)}, which has no fixed flat size; "
            "use Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of these"
        ) from None

    def read(value: Any) -> np.ndarray:
        try:
            return np.asarray(utils.flatten(space, value))
        except Exception as error:
            raise EnvironmentContractError(f"{what} does not fit its space {shortened(space)}: {error}") from error

    return int(size), read


def dict_space(like: Any, parts: dict[str, Any]) -> Any:
    """Return a ``Dict`` space of ``parts`` from the library that the space ``like`` comes from."""
    return importlib.import_module(f"{_library_of(like)}.spaces").Dict(parts)


def _library_of(space: Any) -> str:
    """Return the name of the library that ``space`` comes from; Gymnasium's for what is no space at all."""
    found = (c.__module__.partition(".")[0] for c in type(space).__mro__ if c.__name__ == "Space")
    return next((name for name in found if name in LIBRARIES), LIBRARIES[0])
