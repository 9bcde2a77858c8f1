"""Write episodes as one self-contained HTML page that shows, step by step, what each agent saw, valued and did."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmix_lightning.rendering.canvas import Frame, agent_colour, require_pillow
from qmix_lightning.rendering.episode import RecordedEpisode
from qmix_lightning.rendering.recorder import Moment
from qmix_lightning.runtime.near_modules import import_extra
from qmix_lightning.runtime.regular_files import write_whole
from qmix_lightning.runtime.text import printable

__all__ = ["PageFrames", "check_page", "write_page"]

_LARGEST_SIDE = 520
_COLOURS = 128


def check_page() -> None:
    """Refuse a machine without the plotting library that the page carries."""
    _plotly()


def _plotly() -> str:
    """Return the JavaScript of plotly, which a page holds whole: it opens without a network."""
    return import_extra("plotly.offline", "the page needs plotly", "page").get_plotlyjs()


@dataclass
class PageFrames:
    """Keeps the pictures of one episode as a page holds them: small PNGs as ``data:`` addresses."""

    addresses: list[str] = field(default_factory=list)

    def __call__(self, frame: Frame, moment: Moment) -> None:
        """Add one picture."""
        require_pillow()
        from PIL import Image

        image = Image.fromarray(frame)
        image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
        file = io.BytesIO()
        image.quantize(_COLOURS, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
        self.addresses.append("data:image/png;base64," + base64.b64encode(file.getvalue()).decode())


def write_page(path: Path, title: str, runs: Sequence[tuple[str, float, RecordedEpisode, PageFrames]]) -> None:
    """Write episodes of the same seed to ``path``, side by side.

    Args:
        path: of the HTML file; replaced whole or not at all.
        title: of the page.
        runs: of each episode its title, the discount of its returns, the episode and its pictures.
    """
    template = resources.files("qmix_lightning.rendering")
    told = [_told(name, gamma, episode, frames.addresses) for name, gamma, episode, frames in runs]
    # What ends a script element must not stand in one; in JSON and in plotly it can only be in a text.
    parts = {
        "TITLE": html.escape(printable(title, 120)),
        "EPISODES": json.dumps(told, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        "SCRIPT": template.joinpath("page.js").read_text(encoding="utf-8"),
        "PLOTLY": _plotly(),
    }
    text = template.joinpath("page.html").read_text(encoding="utf-8")
    write_whole(re.sub("@([A-Z]+)@", lambda place: parts[place[1]], text), path)


def _told(title: str, gamma: float, episode: RecordedEpisode, frames: list[str]) -> Mapping[str, Any]:
    """Return an episode in plain lists, as the page's script reads it."""
    n = episode.spec.n_agents
    values = [
        [row[:count] for row, count in zip(step, episode.spec.action_counts, strict=True)]
        for step in _listed(episode.values)
    ]
    ending = {"terminated": "the task ended", "truncated": "the time was up"}.get(episode.ending, "recording stopped")
    metrics = "".join(f", {printable(name)} {value:g}" for name, value in episode.metrics.items())
    return {
        "title": printable(title, 120),
        "summary": f"{episode.length} steps, return {episode.total_reward:.2f}, {ending}{metrics}",
        "agents": [printable(name, 24) for name in episode.spec.agent_names],
        "colours": ["rgb({}, {}, {})".format(*agent_colour(i)) for i in range(n)],
        "actions": [[printable(word, 16) for word in words] for words in episode.action_names],
        "probabilities": episode.probabilities,
        "gamma": gamma,
        "values": values,
        "taken": episode.actions.tolist(),
        "alive": episode.alive.tolist(),
        "rewards": _listed(episode.rewards),
        "returns": _listed(episode.returns),
        "q_tot": None if episode.q_tot is None else _listed(episode.q_tot),
        "sensitivities": None if episode.sensitivities is None else _listed(episode.sensitivities),
        "deaths": episode.deaths,
        "frames": frames,
    }


def _listed(values: NDArray[np.float64]) -> list[Any]:
    """Return nested lists with ``None`` where a value is not finite."""
    listed = values.astype(object)
    listed[~np.isfinite(values)] = None
    return listed.tolist()
