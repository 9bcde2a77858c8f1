"""Watch a trained team play: a video, a window, and a page that shows why it acts: the command ``qmix-watch``."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qmix_lightning.cli.hydra_app import run_command
from qmix_lightning.commands.evaluate import FRESH_SEEDS
from qmix_lightning.config.policy_config import WatchConfig, validate_watch
from qmix_lightning.errors import ConfigurationError
from qmix_lightning.runtime.regular_files import refuse_unwritable
from qmix_lightning.runtime.text import shown_path

if TYPE_CHECKING:
    from qmix_lightning.agents.policy import Policy
    from qmix_lightning.environment import VectorEnv
    from qmix_lightning.policies import StoredPolicy
    from qmix_lightning.rendering.episode import RecordedEpisode
    from qmix_lightning.rendering.page import PageFrames
    from qmix_lightning.rendering.recorder import FrameSink, TeamValues

    Shown = tuple[str, float, RecordedEpisode, PageFrames]

__all__ = ["main", "watch"]


def main() -> None:
    """Run the command; the console entry point."""
    run_command("watch", _task)


def _task(tree: dict[str, Any], folder: Path, overrides: list[str] | None) -> None:
    watch(validate_watch(tree))


@dataclass
class _Player:
    """A policy with what it plays in; ``seed`` is that of the episodes that ``qmix-eval`` would play."""

    title: str
    seed: int
    policy: Policy
    env: VectorEnv
    gamma: float
    team_values: TeamValues | None

    def play(self, config: WatchConfig, seed: int, number: int, on_frame: FrameSink | None) -> RecordedEpisode:
        from qmix_lightning.rendering.recorder import record_episode

        return record_episode(
            self.env,
            self.policy,
            seed=seed,
            number=number,
            epsilon=config.epsilon,
            gamma=self.gamma,
            team_values=self.team_values,
            on_frame=on_frame,
            max_steps=config.max_steps,
        )


def watch(config: WatchConfig) -> list[RecordedEpisode]:
    """Play episodes with a policy, and show them as ``config`` says; return those of the policy, as far as played.

    Raises:
        QMixLightningError: a policy cannot be opened, a package is missing, there is no screen.
    """
    from qmix_lightning.policies import open_policy

    references = [config.reference, *([config.beside] if config.beside else [])]
    policies = [(reference, open_policy(reference, config.run_dir)) for reference in references]
    # Here, since they import torch: a reference that names nothing is told at once.
    from qmix_lightning.rendering.page import PageFrames
    from qmix_lightning.rendering.window import WindowClosed

    video = _output(config).absolute()  # an environment may change the working folder
    _check_files(config, video)
    played: list[RecordedEpisode] = []
    with suppress(WindowClosed), ExitStack() as open_things:
        player, *others = [_player(name, stored, config, open_things) for name, stored in policies]
        seed = player.seed if config.seed is None else config.seed
        show = _display(config, video, player, open_things)
        for number in range(config.episodes):
            shown: list[Shown] = []
            for each in (player, *others):
                frames = PageFrames()
                sinks = (show if each is player else None, frames if config.page else None)
                episode = each.play(config, seed, number, _both(*sinks))
                _print_line(each.title, episode)
                shown.append((each.title, each.gamma, episode, frames))
            played.append(shown[0][2])
            if config.page:
                _write_page(video, number, shown)
    if config.render == "video":
        print(f"  written to {shown_path(video)}")
    return played


def _check_files(config: WatchConfig, video: Path) -> None:
    """Refuse what could not be written, before anything is played."""
    from qmix_lightning.rendering.page import check_page
    from qmix_lightning.rendering.video import check_video

    if video.is_dir():
        raise ConfigurationError(f"output must be a file, and {shown_path(video)} is a folder")
    if config.render == "video" or config.page:
        refuse_unwritable(video, "; name another place, output=FILE.mp4")
    if config.render == "video":
        check_video(video)
    if config.page:
        check_page()


def _output(config: WatchConfig) -> Path:
    """Return where the video goes; the page stands beside it."""
    if config.output:
        return Path(config.output)
    named = config.reference
    if named in ("last", "best") and config.run_dir:
        named = f"{Path(config.run_dir).name}_{named}"
    path = Path(named)
    if path.suffix == ".ckpt":  # those of a run are all called alike
        named = "_".join((*path.parent.parent.parts[-1:], path.stem))
    name = re.sub(r"[^\w.=-]+", "_", Path(named).name).strip("._") or "team"
    return Path(f"watch_{name}.mp4")


def _named(reference: str, run_dir: str | None) -> str:
    """Return a reference as people know it: ``last`` and ``best`` are a run's, and long paths are cut in front."""
    named = Path(reference)
    if run_dir and reference in ("last", "best"):
        named = Path(run_dir) / reference
    return str(Path("...", *named.parts[-3:]) if len(named.parts) > 4 else named)


def _player(reference: str, stored: StoredPolicy, config: WatchConfig, open_things: ExitStack) -> _Player:
    """Open one environment for a policy, in this process."""
    import torch

    from qmix_lightning.components import env_maker
    from qmix_lightning.policies import open_network
    from qmix_lightning.rendering.frames import environment_that_draws
    from qmix_lightning.rendering.team_values import mixing_of

    torch.set_num_threads(stored.provenance.num_threads)
    env = environment_that_draws(
        stored.env_section(config.env),
        lambda section: env_maker(section, evaluation=True, open_policy=open_network)(1),
    )
    open_things.callback(env.close)
    stored.check_env(env.spec)
    fits = stored.spec.state_dim == env.spec.state_dim  # the mixer reads the state
    learner = stored.build_learner() if fits and config.page else None
    policy = stored.build().eval()
    figures = (stored.card or {}).get("figures", {})
    gamma = stored.algorithm.get("gamma")
    return _Player(
        title=f"{_named(reference, config.run_dir)} ({stored.algorithm['name']})",
        seed=int(figures.get("seed", stored.provenance.seed + FRESH_SEEDS)),
        policy=policy,
        env=env,
        gamma=float(gamma) if isinstance(gamma, int | float) else 1.0,
        team_values=mixing_of(learner),
    )


def _display(config: WatchConfig, video: Path, player: _Player, open_things: ExitStack) -> FrameSink | None:
    """Return what shows pictures while they are drawn; closed, or discarded after a failure, by ``open_things``."""
    from qmix_lightning.rendering.video import VideoWriter, frames_per_second

    if config.render == "none":
        return None
    fps = config.fps or frames_per_second(player.env.spec.episode_limit or config.max_steps)
    if config.render == "human":
        from qmix_lightning.rendering.window import Window

        window = Window(player.title, fps)
        open_things.callback(window.close)
        return window
    return open_things.enter_context(VideoWriter(video, fps, config.episodes))


def _both(*sinks: FrameSink | None) -> FrameSink | None:
    """Return a sink that hands pictures to each of ``sinks`` that is there; ``None`` if none is."""
    given: list[Callable[..., None]] = [sink for sink in sinks if sink is not None]

    def hand_on(frame: Any, moment: Any) -> None:
        for sink in given:
            sink(frame, moment)

    return hand_on if given else None


def _print_line(title: str, episode: RecordedEpisode) -> None:
    metrics = "".join(f", {name} {value:g}" for name, value in episode.metrics.items())
    steps = f"{episode.length} step{'s' * (episode.length != 1)}"
    print(f"  {title}: {steps}, return {episode.total_reward:.4g}, {episode.ending}{metrics}", flush=True)


def _write_page(video: Path, number: int, shown: list[Shown]) -> None:
    from qmix_lightning.rendering.page import write_page

    page = video.with_name(f"{video.stem}{f'_{number + 1}' if number else ''}.html")
    write_page(page, " and ".join(title for title, *_ in shown), shown)
    print(f"  page written to {shown_path(page)}")


if __name__ == "__main__":
    main()
