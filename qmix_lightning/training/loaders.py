"""Give Lightning the loaders that it asks for: data is made when an update or an evaluation begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from qmix_lightning.types import EpisodeStats

__all__ = ["PLACEHOLDER", "EvaluationLoader", "PlaceholderLoader"]

PLACEHOLDER = "placeholder"


class PlaceholderLoader:
    """Endless iterable of placeholders: each one stands for one update and holds no data."""

    def __iter__(self) -> Iterator[str]:
        while True:
            yield PLACEHOLDER


class EvaluationLoader:
    """Loader of one batch: the greedy episodes of this rank."""

    def __init__(self, evaluate: Callable[[], EpisodeStats]) -> None:
        self._evaluate = evaluate

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[EpisodeStats]:
        yield self._evaluate()
