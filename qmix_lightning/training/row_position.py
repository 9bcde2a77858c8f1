"""Place what Lightning logs by itself in the rows of a run: over environment steps, at the update that is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping

__all__ = ["PlacesRows"]


class PlacesRows:
    """Mixin of loggers that know where a run stands when something is logged.

    What a callback logs by ``pl_module.log`` comes from Lightning, which knows no environment steps, and whose step is
    mostly the update before the present one.

    Attributes:
        position: returns where the run stands, ``updates`` and ``env_steps`` among it; nothing outside of a run.
    """

    position: Callable[[], Mapping[str, float]] = staticmethod(dict)

    def placed(self, metrics: Mapping[str, float], step: int | None) -> tuple[dict[str, float], int | None]:
        """Return metrics with where they belong, and the environment steps there; unchanged if they say it already."""
        if "updates" in metrics or not (now := self.position()):
            return dict(metrics), step
        return {**now, **metrics}, int(now["env_steps"])
