"""Give Lightning what it asks for in place of batches: data is made when an update or an evaluation begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from qmix_lightning.types import EpisodeStats

__all__ = ["PLACEHOLDER", "EvaluationLoader"]

PLACEHOLDER = "placeholder"
"""Stands for one update, and holds no data."""


class EvaluationLoader:
    """Loader of one batch: the greedy episodes of this rank."""

    def __init__(self, evaluate: Callable[[], EpisodeStats]) -> None:
        self._evaluate = evaluate

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[EpisodeStats]:
        yield self._evaluate()
