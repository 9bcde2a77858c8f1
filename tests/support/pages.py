"""What pages of the documentation tell to write and to type."""

from __future__ import annotations

import re
from pathlib import Path

_BLOCK = re.compile(r"<!-- (run|write (\S+)) -->\n```\w+\n(.*?)```", re.DOTALL)


def steps_of(page: Path) -> list[tuple[str | None, str]]:
    """Return the blocks marked ``<!-- run -->`` (no name) and ``<!-- write NAME -->`` (that file), in their order."""
    return [(name or None, text) for _, name, text in _BLOCK.findall(page.read_text())]
