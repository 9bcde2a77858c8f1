"""The page holds the episode's figures; in a real browser it shows them, without a network, by keyboard, on a phone."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qmix_lightning.errors import MissingDependencyError
from qmix_lightning.rendering.episode import RecordedEpisode
from qmix_lightning.rendering.page import PageFrames, check_page, write_page
from support.recordings import recording

CHROMIUM = "/usr/bin/chromium"


@pytest.fixture(scope="module")
def recorded() -> tuple[RecordedEpisode, PageFrames]:
    return recording()


@pytest.fixture(scope="module")
def episode_and_page(recorded, tmp_path_factory) -> tuple[RecordedEpisode, Path]:
    episode, frames = recorded
    path = tmp_path_factory.mktemp("page") / "new" / "team.html"
    write_page(path, "a team", [("a team (qmix)", 0.9, episode, frames)])
    return episode, path


def held(path: Path) -> list[dict[str, Any]]:
    """The figures that a page carries."""
    found = re.search(r'<script id="episodes" type="application/json">(.*?)</script>', path.read_text(), re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_the_page_carries_the_episode(episode_and_page):
    episode, path = episode_and_page
    (told,) = held(path)
    assert told["rewards"] == episode.rewards.tolist()
    assert told["returns"] == episode.returns.tolist()
    assert told["q_tot"] == episode.q_tot.tolist()
    assert told["sensitivities"] == episode.sensitivities.tolist()
    assert told["taken"] == episode.actions.tolist()
    assert told["alive"] == episode.alive.tolist()
    assert told["deaths"] == [list(death) for death in episode.deaths]
    assert [len(row) for row in told["values"][0]] == [3, 5, 3], "as many as the agent has actions"
    for i in range(3):
        row = told["values"][0][i]
        wanted = episode.values[0, i, : len(row)]
        assert [np.nan if v is None else v for v in row] == pytest.approx(wanted.tolist(), nan_ok=True)
    assert len(told["frames"]) == episode.length + 1
    assert [file.name for file in path.parent.iterdir()] == ["team.html"]


def test_names_cannot_become_code(recorded, episode_and_page, tmp_path: Path):
    """What an environment or a file calls things stays text, whatever it is."""
    evil = "</script><script>alert(1)</script>@PLOTLY@"
    episode, frames = recorded
    spec = dataclasses.replace(episode.spec, agent_names=(evil, *episode.spec.agent_names[1:]))
    words = [[evil] * len(words) for words in episode.action_names]
    _, plain = episode_and_page
    hostile = tmp_path / "evil.html"
    write_page(hostile, evil, [(evil, 0.9, dataclasses.replace(episode, spec=spec, action_names=words), frames)])
    assert held(hostile)[0]["title"] == evil
    assert "<script>alert" not in hostile.read_text()
    assert hostile.read_text().count("<script") == plain.read_text().count("<script")


def test_a_missing_package_gives_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'qmix-lightning\[page\]'"):
        check_page()


# In a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Shown:
    """A page in the browser, offline; ``troubles`` are errors, warnings, and requests to anywhere."""

    def __init__(self, browser: Any, path: Path, width: int) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 844}, offline=True)
        self.page = self.context.new_page()
        self.troubles: list[str] = []
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("console", lambda m: self.troubles.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("request", self._note)
        self.page.goto(path.as_uri())
        self.page.wait_for_selector(".rewards .main-svg")

    def _note(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.troubles.append(request.url)

    def chart(self, name: str, run: int = 0) -> Any:
        """What plotly has drawn in a panel: its traces and shapes."""
        return self.page.evaluate(
            """([name, run]) => {
                const shown = document.querySelectorAll('.run')[run].querySelector('.' + name);
                return { data: shown._fullData.map((t) => ({ x: [...(t.x || [])], y: [...(t.y || [])], z: t.z,
                    said: t.customdata })), shapes: (shown.layout.shapes || []).map((s) => s.x0) };
            }""",
            [name, run],
        )

    def words(self) -> list[list[str]]:
        rows = self.page.query_selector_all(".words tbody tr")
        return [[cell.inner_text() for cell in row.query_selector_all("td")] for row in rows]

    def picture(self, run: int = 0) -> str:
        return self.page.query_selector_all(".frame")[run].get_attribute("src")


def agrees(shown: Shown, episode: RecordedEpisode, t: int) -> None:
    """Every panel shows step ``t`` of the episode."""
    assert episode.q_tot is not None
    assert episode.sensitivities is not None
    assert shown.page.inner_text("#where") == f"step {t} of {episode.length}"
    assert shown.chart("returns")["shapes"] == shown.chart("rewards")["shapes"] == [t]
    q_tot, returns = shown.chart("returns")["data"]
    assert q_tot["y"] == episode.q_tot.tolist()
    assert returns["y"] == episode.returns.tolist()
    earned, deaths = shown.chart("rewards")["data"]
    assert earned["y"] == episode.rewards.tolist()
    assert deaths["x"] == [died for died, _ in episode.deaths]
    if t == episode.length:
        assert {row[1] for row in shown.words()} == {"the episode is over"}
        return
    assert shown.chart("sensitivities")["data"][0]["x"] == episode.sensitivities[t].tolist()
    said = shown.chart("values")["data"][0]["said"]
    for i, words in enumerate(shown.words()):
        if not episode.alive[t, i]:
            assert words[1] == "not alive"
            continue
        taken = episode.actions[t, i]
        assert words[1:3] == [episode.action_names[i][taken], f"{episode.values[t, i, taken]:.2f}"]
        for a in np.flatnonzero(np.isfinite(episode.values[t, i])):
            assert float(said[i][a].rpartition(": ")[2]) == episode.values[t, i, a]


@pytest.mark.screen
@pytest.mark.parametrize("width", [390, 1280])
def test_the_slider_moves_every_panel(episode_and_page, browser, width: int):
    episode, path = episode_and_page
    shown = Shown(browser, path, width)
    pictures = []
    for t in range(episode.length + 1):
        agrees(shown, episode, t)
        pictures.append(shown.picture())
        shown.page.keyboard.press("ArrowRight")
    assert pictures == held(path)[0]["frames"]
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= width, "nothing is cut off"
    assert shown.troubles == []


@pytest.mark.screen
def test_it_is_worked_by_keyboard_alone(episode_and_page, browser):
    episode, path = episode_and_page
    shown = Shown(browser, path, 1280)
    press = shown.page.keyboard.press
    assert shown.page.evaluate("document.activeElement.id") == "step", "the slider is ready"
    for key, t in (("ArrowRight", 1), ("End", episode.length), ("ArrowLeft", episode.length - 1), ("Home", 0)):
        press(key)
        agrees(shown, episode, t)
    press("Shift+Tab")
    assert shown.page.evaluate("document.activeElement.id") == "play"
    press("Enter")
    shown.page.wait_for_function("Number(document.getElementById('step').value) >= 2")
    press(" ")
    assert shown.page.inner_text("#play") == "Play"
    assert shown.troubles == []


@pytest.mark.screen
def test_two_teams_from_the_same_start(tmp_path: Path, browser):
    both = [recording(), recording("algorithm=iql")]
    path = tmp_path / "two.html"
    write_page(path, "two", [(name, 0.9, *found) for name, found in zip(("first", "second"), both, strict=True)])
    shown = Shown(browser, path, 1280)
    assert len(shown.page.query_selector_all(".run")) == 2
    assert len(shown.page.query_selector_all(".sensitivities")) == 1, "no mixer, no panel for it"
    shown.page.keyboard.press("End")
    for run, (episode, frames) in enumerate(both):
        assert shown.picture(run) == frames.addresses[-1], "the shorter one stays at its end"
        assert shown.chart("rewards", run)["data"][0]["y"] == episode.rewards.tolist()
    assert shown.troubles == []
