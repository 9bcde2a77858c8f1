"""Join a tree of small arrays into one array of words: a compiled call costs by the arrays that go in and come out.

A program that does little with 8 arrays takes 13 microseconds; with 12 it has so many kernels that XLA hands it to
another thread, and it takes 50.

Imports JAX: only factories import this module, when they are called.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["FlatState"]


class FlatState:
    """Conversion of a tree to ``(words [W] uint32, others)`` and back, without a bit lost; both ways are traced.

    Args:
        tree: what will be flattened, as shapes and dtypes.
    """

    def __init__(self, tree: Any) -> None:
        self._leaves, self._structure = jax.tree.flatten(tree)
        self._joined = [_fits(leaf.dtype) for leaf in self._leaves]

    def flatten(self, tree: Any) -> tuple[jax.Array, tuple[Any, ...]]:
        """Return ``(words, others)`` of ``tree``.

        Values of wider dtypes, and typed keys, stay as they are, in ``others``.
        """
        words, others = [], []
        for leaf, value, joined in zip(self._leaves, jax.tree.leaves(tree), self._joined, strict=True):
            value = jnp.asarray(value)
            if not joined:
                others.append(value)
            else:
                words.append(_to_words(value.astype(leaf.dtype).reshape(-1)))  # one dtype for ever
        return jnp.concatenate(words) if words else jnp.zeros(0, jnp.uint32), tuple(others)

    def unflatten(self, words: jax.Array, others: tuple[Any, ...]) -> Any:
        """Return the tree of what :meth:`flatten` gave."""
        rest, start, leaves = list(others), 0, []
        for leaf, joined in zip(self._leaves, self._joined, strict=True):
            if not joined:
                leaves.append(rest.pop(0))
                continue
            size = math.prod(leaf.shape)
            leaves.append(_from_words(words[start : start + size], leaf.dtype).reshape(leaf.shape))
            start += size
        return jax.tree.unflatten(self._structure, leaves)


def _fits(dtype: Any) -> bool:
    """Return whether a word holds a value of ``dtype``."""
    kinds = jnp.bool_, jnp.integer, jnp.floating
    return any(jnp.issubdtype(dtype, kind) for kind in kinds) and jnp.dtype(dtype).itemsize <= 4


def _to_words(values: jax.Array) -> jax.Array:
    if values.dtype == jnp.bool_:
        return values.astype(jnp.uint32)
    unsigned = jnp.dtype(f"uint{8 * values.dtype.itemsize}")
    return jax.lax.bitcast_convert_type(values, unsigned).astype(jnp.uint32)


def _from_words(words: jax.Array, dtype: Any) -> jax.Array:
    if dtype == jnp.bool_:
        return words != 0
    unsigned = jnp.dtype(f"uint{8 * jnp.dtype(dtype).itemsize}")
    return jax.lax.bitcast_convert_type(words.astype(unsigned), dtype)
