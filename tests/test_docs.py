"""Links of the documentation lead somewhere, and say where."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support import inprocess
from support.pages import steps_of

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
TO_RUN = [page for page in PAGES if steps_of(page)]
LINK = re.compile(r"\[([^\]\[]+)\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path):
    for text, target in LINK.findall(page.read_text()):
        if target.startswith(("http://", "https://")) or "reference/" in target:  # generated, and checked with the site
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"[{text}]({target})"
        if anchor:
            assert anchor in anchors(path), f"[{text}]({target})"
        if text.strip("`").endswith(".py"):
            assert target.endswith(text.strip("`")), f"[{text}]({target}) names another file than it leads to"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_that_are_named_are_there(page: Path):
    roots = (ROOT, ROOT / "qmix_lightning")
    for name in re.findall(r"`((?:\w+/)+\w+\.(?:py|yaml|md))`", page.read_text()):
        if any((root / name.partition("/")[0]).is_dir() for root in roots):  # not a file of the reader's own package
            assert any((root / name).exists() for root in roots), name


def test_what_a_run_writes_is_on_its_page(tmp_path: Path):
    """Columns and keys have a row there; one that is new fails here until it has."""
    inprocess.succeed([f"run_dir={tmp_path}/run", "algorithm=ow_qmix", *inprocess.TINY, "objective=return_mean"])
    columns = (tmp_path / "run" / "metrics.csv").read_text().partition("\n")[0].split(",")
    keys = json.loads((tmp_path / "run" / "summary.json").read_text())
    named = set(re.findall(r"`([\w/]+)`", (ROOT / "docs" / "run_folder.md").read_text()))
    assert {column for column in columns if not {column, column.removeprefix("train/")} & named} == set()
    assert set(keys) - named == set()


NAMED = re.compile(r"^\|.*\(\.\./(qmix_lightning/[\w/]+\.py)\) \| `([\w.]+)` \|$", re.MULTILINE)


@pytest.mark.parametrize("page", ["figure.md", "truncation.md"])
def test_the_names_beside_the_algorithm_are_in_the_code(page: str):
    rows = NAMED.findall((ROOT / "docs" / page).read_text())
    assert len(rows) >= 5
    for file, name in rows:
        assert name in names_in(ROOT / file), (file, name)


def test_reading_names_what_is_in_the_code():
    """Each name after a link to a file, up to the next link, is in that file; other names are in one named before."""
    text = (ROOT / "docs" / "reading.md").read_text()
    rows = [row.split("|")[2] for row in text.splitlines() if row.startswith("| ") and "](../" in row]
    assert len(rows) == 12
    known: set[str] = set()
    for row in rows:
        for file in re.findall(r"\(\.\./([\w/]+\.py)\)", row):
            known |= names_in(ROOT / file)
        for name in re.findall(r"(?<!\[)`([A-Za-z_]\w*(?:\.\w+)?)`", row):
            assert name in known or any(other.endswith(f".{name}") for other in known), name


def names_in(file: Path) -> set[str]:
    """Return classes, functions, methods and what ``__init__`` keeps, as ``Class.name``."""
    found: set[str] = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            for part in ast.walk(node):
                if isinstance(part, ast.FunctionDef):
                    found.add(f"{node.name}.{part.name}")
                if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id == "self":
                    found.add(f"{node.name}.{part.attr}")
    return found


@pytest.mark.docs
def test_the_site_builds_strictly_and_asks_no_other_host():
    started = time.monotonic()
    built = subprocess.run([sys.executable, str(ROOT / "docs/site/build.py")], capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    seconds = time.monotonic() - started
    asked = re.compile(r"<(?:script|link|img|iframe|source)[^>]+(?:src|href)=\"?(?:https?:)?//[^\s>]+")
    pages = sorted((ROOT / ".site" / "html").rglob("*.html"))
    assert len(pages) > 60
    for page in pages:
        assert not asked.search(page.read_text()), page
    print(f"{len(pages)} pages in {seconds:.0f} s")


@pytest.mark.docs
@pytest.mark.parametrize("page", TO_RUN, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_tells_to_type_works(page: Path, tmp_path: Path):
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    for name, text in steps_of(page):
        if name:
            (tmp_path / name).write_text(text)
            continue
        done = subprocess.run(["bash", "-euc", text], cwd=tmp_path, env=environ, capture_output=True, text=True)
        assert done.returncode == 0, text + done.stdout + done.stderr
