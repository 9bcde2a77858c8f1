"""Build the documentation as a site: ``python docs/site/build.py`` writes ``.site/html``.

The pages in ``docs/`` link to files of the repository, as a reader of the repository wants it. For the site they are
copied to ``.site/pages``; each file of the code that one of them links to becomes a page there, and the reference is
generated. The rest is ``mkdocs build --strict``, which refuses links and anchors that lead nowhere. Nothing asks the
network.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import reference

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = ROOT / ".site" / "pages"
LINK = re.compile(r"(?:(?<=\]\()|(?<=src=\"))(?!https?:|mailto:|#)([^)#\s\"]+)((?:#[^)\s]*)?)(?=[)\"])")
PROJECT_PAGES = ("README", "CHANGELOG", "CONTRIBUTING")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".json": "json", ".ipynb": "json"}


def main() -> None:
    """Write the pages, then the site."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages-only", action="store_true", help="write .site/pages and leave mkdocs alone")
    options = parser.parse_args()
    write_pages()
    if not options.pages_only:
        command = [
            sys.executable,
            "-m",
            "mkdocs",
            "build",
            "--strict",
            "--quiet",
            "-f",
            str(ROOT / "mkdocs.yml"),
        ]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
        if done.returncode == 0:
            print("open .site/html/index.html; for its search: python -m http.server -d .site/html")
        sys.exit(done.returncode)


def write_pages() -> None:
    """Write every page of the site to ``.site/pages``."""
    shutil.rmtree(PAGES, ignore_errors=True)
    shutil.copytree(DOCS, PAGES, ignore=shutil.ignore_patterns("site", "__pycache__", "*.ipynb"))
    pages = {PAGES / page.relative_to(DOCS): page for page in DOCS.rglob("*.md")}
    pages |= {PAGES / "project" / f"{name.lower()}.md": ROOT / f"{name}.md" for name in PROJECT_PAGES}
    linked: set[Path] = set()
    for target, source in pages.items():
        write(target, with_links_of_the_site(source.read_text(), source, target, linked))
    for path in sorted(linked):
        write(source_page(path), text_of_source(path))
    for name, text in reference.pages().items():
        write(PAGES / "reference" / name, text)


def with_links_of_the_site(text: str, source: Path, target: Path, linked: set[Path]) -> str:
    """Return a page with links as they are on the site; add to ``linked`` the files of the code that it leads to."""

    def replace(match: re.Match[str]) -> str:
        path = Path(os.path.normpath(source.parent / match[1]))
        if path.stem in PROJECT_PAGES and path.parent == ROOT:
            there = PAGES / "project" / f"{path.stem.lower()}.md"
        elif path.is_relative_to(DOCS) and path.suffix in (".md", ".svg", ".gif", ".png"):
            there = PAGES / path.relative_to(DOCS)
        else:
            linked.add(path)
            there = source_page(path)
        return os.path.relpath(there, target.parent) + match[2]

    return LINK.sub(replace, text)


def source_page(path: Path) -> Path:
    """Return the page that shows a file or a folder of the repository."""
    return PAGES / "source" / f"{path.relative_to(ROOT)}.md"


def text_of_source(path: Path) -> str:
    """Return a page with the text of a file, or the names of what is in a folder."""
    name = path.relative_to(ROOT)
    if path.is_dir():
        names = sorted(
            f"{p.name}/" if p.is_dir() else p.name for p in path.iterdir() if not p.name.startswith(("_", "."))
        )
        return f"# {name}/\n\n" + "".join(f"* `{entry}`\n" for entry in names)
    return f"# {path.name}\n\n`{name}`\n\n~~~~ {{ .{LANGUAGES.get(path.suffix, 'text')} }}\n{path.read_text()}\n~~~~\n"


def write(path: Path, text: str) -> None:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


if __name__ == "__main__":
    main()
