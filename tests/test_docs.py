"""Links of the documentation lead somewhere, and say where."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
LINK = re.compile(r"\[([^\]\[]+)\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    for text, target in LINK.findall(page.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"[{text}]({target})"
        if anchor:
            assert anchor in anchors(path), f"[{text}]({target})"
        if text.strip("`").endswith(".py"):
            assert target.endswith(text.strip("`")), f"[{text}]({target}) names another file than it leads to"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_are_there(page: Path):
    roots = (ROOT, ROOT / "qmix_lightning")
    for name in re.findall(r"`((?:\w+/)+\w+\.(?:py|yaml|md))`", page.read_text()):
        if any((root / name.partition("/")[0]).is_dir() for root in roots):  # not a file of the reader's own package
            assert any((root / name).exists() for root in roots), name
