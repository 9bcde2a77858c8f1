"""Draw the first environment of a vector environment: by its own picture where it has one, plainly elsewhere."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from qmix_lightning.environment import VectorEnv, is_natively_batched, load
from qmix_lightning.errors import ConfigurationError, QMixLightningError
from qmix_lightning.rendering.canvas import Frame, require_pillow
from qmix_lightning.rendering.plain import draw_observations
from qmix_lightning.runtime.text import error_line, shortened
from qmix_lightning.types import EnvSpec, Observation
from qmix_lightning.worker.blame import is_fault

__all__ = ["FrameRenderer", "action_names", "draws_itself", "environment_that_draws", "simulator_of"]


def simulator_of(env: VectorEnv) -> Any:
    """Return what draws: the first plugin behind ``env``, or a natively batched environment itself."""
    return getattr(env, "first_env", env)


def draws_itself(env: VectorEnv) -> bool:
    """Return whether the environment brings ``render_frame``, or renders to pixels."""
    simulator = simulator_of(env)
    return hasattr(simulator, "render_frame") or getattr(simulator, "render_mode", None) == "rgb_array"


def environment_that_draws(section: Mapping[str, Any], make: Callable[[Mapping[str, Any]], VectorEnv]) -> VectorEnv:
    """Create the environment of an ``env`` section, asked for pictures if it needs to be and takes it."""
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame draws into memory; windows here are not its own
    env = make(section)
    if draws_itself(env) or is_natively_batched(load(section["name"])):  # the latter has no place for a render mode
        return env
    asked = {**section, "kwargs": {**(section.get("kwargs") or {}), "render_mode": "rgb_array"}}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it may not have this render mode, and say so
            drawing = make(asked)
    except ConfigurationError:  # it has no such setting
        return env
    env.close()
    return drawing


def action_names(env: VectorEnv) -> list[list[str]]:
    """Return a word for each action of each agent: those of the environment's ``action_names``, else numbers."""
    spec = env.spec
    own: Any = getattr(simulator_of(env), "action_names", None)
    named = []
    for agent, count in zip(spec.agent_names, spec.action_counts, strict=True):
        words: Any = own.get(agent) if isinstance(own, Mapping) else own
        fits = isinstance(words, Sequence) and not isinstance(words, str) and len(words) == count
        named.append([shortened(word, 16) for word in words] if fits else [str(a) for a in range(count)])
    return named


class FrameRenderer:
    """Draws the first environment of ``env``.

    In this order: the plugin's ``render_frame() -> uint8 [H, W, 3]``, which may raise ``NotImplementedError``; its
    ``render()`` if its ``render_mode`` is ``rgb_array``; a plain picture of the observations. An environment that fails
    to draw is drawn plainly from then on, and one line says why.

    Args:
        env: what is drawn.
    """

    def __init__(self, env: VectorEnv) -> None:
        require_pillow()
        self._env = env
        self._words = action_names(env)
        self._plain = not draws_itself(env)

    def __call__(self, observation: Observation, actions: Sequence[int] | None) -> Frame:
        """Return the picture of what is shown now.

        Args:
            observation: what the environments show.
            actions: ``[N]``, the joint action that led here, -1 of an agent that was not alive; ``None`` at the start.
        """
        if not self._plain:
            try:
                return self._own_picture()
            except NotImplementedError:
                self._plain = True
            except QMixLightningError:
                raise
            except BaseException as error:
                if not is_fault(error):
                    raise
                self._plain = True
                print(f"the environment cannot draw itself, so observations are drawn: {error_line(error)[:200]}",
                      file=sys.stderr)  # fmt: skip
        return self._plain_picture(observation, actions)

    def _own_picture(self) -> Frame:
        simulator = simulator_of(self._env)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # simulators' drawing is old code
            own = getattr(simulator, "render_frame", None)
            drawn = own() if own is not None else simulator.render()
        if drawn is None:
            raise ValueError("it gave no picture")
        picture = np.asarray(drawn)
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] not in (3, 4) or 0 in picture.shape:
            what = "render" if own is None else "render_frame"
            raise ConfigurationError(
                f"{what}() must return uint8 [height, width, 3], not {picture.dtype} {list(picture.shape)}"
            )
        return np.ascontiguousarray(picture[..., :3])

    def _plain_picture(self, observation: Observation, actions: Sequence[int] | None) -> Frame:
        spec: EnvSpec = self._env.spec
        done = None
        if actions is not None:
            done = [words[a] if a >= 0 else None for words, a in zip(self._words, actions, strict=True)]
        obs, alive = (part[0].numpy(force=True) for part in (observation.obs, observation.agent_mask))
        return draw_observations(spec.agent_names, obs, alive, done)
