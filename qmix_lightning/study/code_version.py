"""Hash the code that an algorithm's result comes from, so that older results can be told.

Nobody has to remember to raise a number: every module that the algorithm, its mixer, its agent and its environment
consist of counts, without comments, docstrings and layout. What carries episodes about (replay, rollout, training) is
held by tests of exact equality and does not count.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import io
import tokenize
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import qmix_lightning

__all__ = ["changed_parts", "code_version"]

_OWN = tuple(f"qmix_lightning.{name}" for name in ("algorithms", "mixers", "agents", "nn", "action_selection"))
_LAYOUT = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def code_version(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the hash of each part's code, for ``env``, ``agent``, ``mixer`` and ``algorithm``.

    Args:
        sections: of the configuration, each with its ``name``.
    """
    return {part: _hash_of_part(part, sections[part]["name"]) for part in ("env", "agent", "mixer", "algorithm")}


@cache
def _hash_of_part(part: str, name: str) -> str:
    from qmix_lightning.agents import AGENTS
    from qmix_lightning.algorithms import ALGORITHMS
    from qmix_lightning.environment import ENVIRONMENTS
    from qmix_lightning.mixers import MIXERS

    registry = {"env": ENVIRONMENTS, "agent": AGENTS, "mixer": MIXERS, "algorithm": ALGORITHMS}[part]
    target = registry.targets().get(name, "")
    return _hash_of(target.partition(":")[0] if isinstance(target, str) else getattr(target, "__module__", ""))


def changed_parts(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the parts whose code is another one now."""
    return [part for part, value in now.items() if then.get(part) != value]


@cache
def _hash_of(module: str) -> str:
    """Return the hash of a module's code and of what it imports from the maths packages."""
    digest = hashlib.sha256()
    for name in sorted(_with_imports(module)):
        digest.update(f"{name}\n{essence(_source(name))}\n".encode())
    return digest.hexdigest()[:12]


def _with_imports(module: str) -> set[str]:
    found, waiting = set(), [module]
    while waiting:
        if (name := waiting.pop()) in found or not (source := _source(name)):
            continue
        found.add(name)
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(_OWN):
                waiting += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names if alias.name.startswith(_OWN)]
    return found


@cache
def _source(module: str) -> str:
    """Return a module's source; empty if it is none, or not Python."""
    if module.startswith(_OWN):  # by its place: to ask for a module imports what it is in, and that imports torch
        place = Path(qmix_lightning.__file__).parent.joinpath(*module.split(".")[1:])
        found = [path for path in (place.with_name(f"{place.name}.py"), place / "__init__.py") if path.is_file()]
        return found[0].read_text(encoding="utf-8") if found else ""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):
        return ""
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return ""
    return Path(spec.origin).read_text(encoding="utf-8")


def essence(source: str) -> str:
    """Return Python source without comments, docstrings, blanks and line breaks."""
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type != tokenize.COMMENT]
    kept = []
    for number, token in enumerate(tokens):
        if token.type in _LAYOUT:
            continue
        before = tokens[number - 1].type if number else tokenize.NEWLINE
        if token.type == tokenize.STRING and before in _LAYOUT and tokens[number + 1].type == tokenize.NEWLINE:
            continue  # an expression of its own: a docstring
        kept.append("".join(token.string.split()))
    return "".join(kept)
