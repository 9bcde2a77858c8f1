"""Read spaces by what they are like, without importing the library that they come from.

A space is recognised by the names of its classes and by its attributes, so that Gymnasium's of any version, gym's and
an environment's own all serve; the usual kinds are flattened here, others by the functions of their library.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from qmix_lightning.errors import EnvironmentContractError
from qmix_lightning.runtime.text import shortened

__all__ = ["MOST_COMBINATIONS", "Dict", "combinations", "is_space", "observation_reader", "to_vector"]

_LIBRARIES = ("gymnasium", "gym")
_ATTRIBUTES = {
    "Box": "shape",
    "Discrete": "n",
    "MultiBinary": "shape",
    "MultiDiscrete": "nvec",
    "Dict": "spaces",
    "Tuple": "spaces",
}
"""Kind of space -> what it must have."""

MOST_COMBINATIONS = 512
"""Actions that a space of several parts may have in all."""


class Dict:
    """A space of named parts, as the libraries have it.

    Args:
        spaces: key -> its space.
    """

    def __init__(self, spaces: dict[str, Any]) -> None:
        self.spaces = spaces

    def __repr__(self) -> str:
        return f"Dict({self.spaces})"


def is_space(value: Any, kind: str = "Space") -> bool:
    """Tell whether ``value`` is a space of the class ``kind`` (``Box``, ``Discrete``, ...) or derived from it."""
    names = {c.__name__ for c in type(value).__mro__}
    if kind == "Space":
        return "Space" in names or any(is_space(value, known) for known in _ATTRIBUTES)
    return kind in names and hasattr(value, _ATTRIBUTES.get(kind, "contains"))


def combinations(space: Any) -> np.ndarray | None:
    """Return every value ``[A, *shape]`` of a ``MultiDiscrete`` space, the last part running fastest.

    ``None``: there are more than :data:`MOST_COMBINATIONS`.
    """
    sizes = np.asarray(space.nvec).ravel()
    if float(np.prod(sizes.astype(float))) > MOST_COMBINATIONS:
        return None
    values = np.stack([part.ravel() for part in np.indices(tuple(sizes.tolist()))], axis=1)  # [A, parts]
    start = np.asarray(getattr(space, "start", 0)).ravel()
    return (values + start).astype(space.dtype).reshape(len(values), *np.shape(space.nvec))


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
    if is_space(space, "Dict"):
        parts = {key: observation_reader(part, what) for key, part in space.spaces.items()}
        return _joined(parts, space, what)
    if is_space(space, "Tuple"):
        return _joined(dict(enumerate(observation_reader(part, what) for part in space.spaces)), space, what)
    if is_space(space, "Box") or is_space(space, "MultiBinary"):
        shape = tuple(space.shape)
        return int(np.prod(shape)), lambda value: to_vector(value, what, shape)
    if is_space(space, "Discrete"):
        first = int(getattr(space, "start", 0))
        return int(space.n), lambda value: _one_hot(np.asarray(value) - first, [int(space.n)], space, what)
    if is_space(space, "MultiDiscrete"):
        counts = np.asarray(space.nvec).ravel().tolist()
        starts = np.asarray(getattr(space, "start", 0))
        return sum(counts), lambda value: _one_hot(np.asarray(value) - starts, counts, space, what)
    return _library_reader(space, what)


def _joined(
    parts: Mapping[Any, tuple[int, Callable[[Any], np.ndarray]]], space: Any, what: str
) -> tuple[int, Callable[[Any], np.ndarray]]:
    """Return the size and the reader of a ``Dict`` or ``Tuple``: its parts, one after the other."""

    def read(value: Any) -> np.ndarray:
        found = []
        for key, (size, reader) in parts.items():
            try:
                part = value[key]
            except (KeyError, IndexError, TypeError):
                fits_not = f"{what} does not fit its space {shortened(space)}"
                raise EnvironmentContractError(f"{fits_not}: it lacks '{key}'") from None
            flat = reader(part)
            if flat.size != size:
                raise EnvironmentContractError(f"{what}['{key}'] has {flat.size} values, its space says {size}")
            found.append(flat)
        return np.concatenate(found) if found else np.zeros(0, np.float32)

    return sum(size for size, _ in parts.values()), read


def _one_hot(numbers: np.ndarray, counts: list[int], space: Any, what: str) -> np.ndarray:
    numbers = numbers.ravel()
    flat = np.zeros(sum(counts), np.float32)
    if numbers.dtype.kind not in "iu" or numbers.size != len(counts):
        raise EnvironmentContractError(f"{what} does not fit its space {shortened(space)}")
    offset = 0
    for number, count in zip(numbers.tolist(), counts):
        if not 0 <= number < count:
            raise EnvironmentContractError(f"{what} does not fit its space {shortened(space)}: it holds {number}")
        flat[offset + number] = 1.0
        offset += count
    return flat


def _library_reader(space: Any, what: str) -> tuple[int, Callable[[Any], np.ndarray]]:
    """Return the size and the reader of any other space, by the functions of the library that it comes from."""
    modules = (c.__module__.partition(".")[0] for c in type(space).__mro__ if c.__name__ == "Space")
    library = next((name for name in modules if name in _LIBRARIES), None)
    try:
        if library is None:
            raise ValueError
        utils = importlib.import_module(f"{library}.spaces.utils")
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
