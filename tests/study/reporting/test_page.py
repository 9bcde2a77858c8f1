"""The page in a real browser, without a network: filters by task and algorithm, steps and time, mouse and keyboard."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qmix_lightning.commands.report import Options, write_report
from support.run_folders import write_run

pytestmark = pytest.mark.slow


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Any]:
    """The page of a report on two tasks and three algorithms, open in Chromium."""
    from playwright.sync_api import sync_playwright

    for env in ("lbf", "mpe"):
        for number, algorithm in enumerate(("iql", "vdn", "qmix")):
            for seed in (1, 2, 3):
                values = [0.0, 0.1 * seed, 0.2 * seed + number]
                place = tmp_path / "runs" / f"{env}{algorithm}{seed}"
                write_run(place, values, seed=seed, algorithm=algorithm, env={"name": env})
    write_run(tmp_path / "runs" / "late", [0.5], seed=4, status="running", total_env_steps=300)
    write_report([tmp_path / "runs"], tmp_path / "out", Options(figures=False))
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        opened = browser.new_context(offline=True, viewport={"width": 1200, "height": 900}).new_page()
        opened.problems = []
        opened.on("pageerror", lambda error: opened.problems.append(str(error)))
        opened.on("console", lambda line: opened.problems.append(line.text) if line.type == "error" else None)
        opened.requested = []
        opened.on("request", lambda request: opened.requested.append(request.url))
        opened.goto((tmp_path / "out" / "report.html").as_uri())
        opened.wait_for_selector("#task-1 .main-svg", timeout=120_000)
        yield opened
        browser.close()


def names(page: Any, task: int) -> list[str]:
    """The curves that a task's plot draws."""
    found = page.evaluate(f"document.getElementById('task-{task}').data.map(trace => trace.name)")
    return [name for name in found if name]


def test_the_page_filters_and_names_what_is_missing(page: Any):
    assert names(page, 0) == ["iql", "qmix", "vdn"]
    last = page.evaluate("document.getElementById('task-0').data.find(trace => trace.name === 'vdn').y.at(-1)")
    assert last == pytest.approx(1.4)
    page.get_by_role("checkbox", name="vdn").uncheck()
    assert names(page, 0) == names(page, 1) == ["iql", "qmix"]
    assert not page.locator("section.task tr", has_text="vdn").first.is_visible()
    page.get_by_role("checkbox", name="mpe").uncheck()
    assert not page.locator("section.task").nth(1).is_visible()
    page.get_by_role("checkbox", name="mpe").focus()
    page.keyboard.press("Space")
    assert page.locator("section.task").nth(1).is_visible()
    assert page.evaluate("document.getElementById('task-0').data[0].x.at(-1)") == 300
    page.get_by_role("radio", name="training time").check()
    assert page.evaluate("document.getElementById('task-0').data[0].x.at(-1)") == pytest.approx(0.5)
    assert "lbf, qmix, seed 4" in page.locator("#absent").inner_text()
    page.set_viewport_size({"width": 390, "height": 800})
    for _ in range(100):  # plots follow a little later; the page lets no string be run, so it is asked again
        if page.evaluate("document.documentElement.scrollWidth") <= 390:
            break
        page.wait_for_timeout(200)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.problems == []
    assert [url for url in page.requested if not url.startswith(("file:", "data:", "blob:"))] == []
