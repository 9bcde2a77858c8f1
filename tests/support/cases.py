"""Fewer cases than all: of several parameters, and in the default run."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import pytest


def pairwise(*parameters: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Cases in which any value of one parameter meets any value of another at least once."""
    values = [list(parameter) for parameter in parameters]
    rows = list(itertools.product(*(range(len(each)) for each in values)))

    def pairs(row: tuple[int, ...]) -> set[tuple[Any, Any]]:
        return set(itertools.combinations(enumerate(row), 2))

    missing, chosen = set().union(*map(pairs, rows)), []
    while missing:
        chosen.append(max(rows, key=lambda row: len(pairs(row) & missing)))
        missing -= pairs(chosen[-1])
    return [tuple(each[i] for each, i in zip(values, row, strict=True)) for row in chosen]


def every_value(*parameters: Iterable[Any]) -> list[tuple[Any, ...]]:
    """As many cases as the longest parameter has values, each of which occurs; shorter ones begin again."""
    values = [list(parameter) for parameter in parameters]
    return [tuple(each[i % len(each)] for each in values) for i in range(max(map(len, values)))]


def mostly_slow(values: Iterable[Any], quick: Iterable[Any]) -> list[Any]:
    """Parameters of which those that are not ``quick`` are left to the slow tests."""
    return [pytest.param(value, marks=[] if value in quick else pytest.mark.slow) for value in values]
