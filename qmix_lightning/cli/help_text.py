"""Fit the list of groups that ``--help`` prints to a terminal."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import sys
import textwrap
from collections.abc import Collection, Generator

__all__ = ["fitted_to_terminal"]

_NOT_CHOSEN = ("preset/family", "suite")
"""Groups that follow another one, or are of another command."""


@contextlib.contextmanager
def fitted_to_terminal(groups: Collection[str]) -> Generator[None]:
    """Break the lines of groups and their choices at the terminal's width; elsewhere each stays one line.

    Args:
        groups: whose lines these are, ``env: lbf, mpe, ...``.
    """
    if not sys.stdout.isatty():
        yield
        return
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        try:
            yield
        finally:
            width = shutil.get_terminal_size().columns - 1
            for line in shown.getvalue().splitlines():
                group = match[1] if (match := re.match(r"([\w/]+): ", line)) else ""
                if group in groups and group not in _NOT_CHOSEN:
                    line = textwrap.fill(line, width, subsequent_indent="  ", break_on_hyphens=False)
                if group not in _NOT_CHOSEN:
                    print(line, file=sys.__stdout__)
