"""State what a policy was measured to reach, and compare a new measurement with it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from qmix_lightning.errors import CheckpointError
from qmix_lightning.runtime.text import printable, printable_items

__all__ = ["FIGURES", "check_card", "compare", "make_card"]

FIGURES = ("episodes", "seed", "num_envs", "return_mean", "return_ci95", "length_mean", "win_rate")
"""What an evaluation is asked for and what comes out, in a card."""

_TEXTS = ("task", "command", "commit")
_NOT_OF_THE_RESULT = ("qmix-lightning", "pytorch-lightning")
"""Versions that do not decide what a network with fixed weights does."""


def make_card(result: Mapping[str, Any], *, task: str, command: str, commit: str) -> dict[str, Any]:
    """Return a card.

    Args:
        result: of :func:`qmix_lightning.commands.evaluate.evaluate`.
        task: what the team does, in words.
        command: by which it was trained; shown to people, never run.
        commit: of this project's code that it was trained with.
    """
    figures = {name: result[name] for name in FIGURES if name in result}
    return {"task": task, "command": command, "commit": commit, "figures": figures, "versions": result["versions"]}


def check_card(card: object, path: object) -> dict[str, Any] | None:
    """Return a file's card: numbers, and texts without control characters.

    Raises:
        CheckpointError: it is no card.
    """
    if card is None:
        return None
    if not isinstance(card, Mapping) or not card.keys() <= {*_TEXTS, "figures", "versions"}:
        raise CheckpointError(f"{path} holds a card that is none")
    figures, versions = card.get("figures"), card.get("versions", {})
    if not isinstance(figures, Mapping) or not isinstance(versions, Mapping):
        raise CheckpointError(f"{path} holds a card without figures")
    for name, value in figures.items():
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if name not in FIGURES or not (number or (value is None and name == "return_ci95")):
            raise CheckpointError(f"{path} holds a card with a wrong figure, '{printable(name)}'")
    for name, most in (("episodes", 100_000), ("num_envs", 1024), ("seed", 2**31)):
        if not isinstance(figures.get(name), int) or not (name == "seed") <= 1 + figures[name] <= 1 + most:
            raise CheckpointError(f"{path} holds a card with a wrong figure, '{name}'")
    if "return_mean" not in figures:
        raise CheckpointError(f"{path} holds a card without a return")
    return {
        **{name: printable(card.get(name, ""), 1000) for name in _TEXTS},
        "figures": dict(figures),
        "versions": printable_items(versions),
    }


def compare(card: Mapping[str, Any], result: Mapping[str, Any]) -> tuple[bool, str]:
    """Compare an evaluation on a card's episodes with the card.

    With the versions and the kind of CPU of the card the return must be the same number, elsewhere inside the card's
    interval.

    Returns:
        Whether it holds, and a line that says what was compared.
    """
    claimed, interval = card["figures"]["return_mean"], card["figures"].get("return_ci95") or 0.0
    versions, now = card["versions"], result["versions"]
    changed = sorted(
        name for name in versions if name not in _NOT_OF_THE_RESULT and versions[name] != now.get(name, "none")
    )
    found = result["return_mean"]
    if not changed:
        holds = math.isclose(found, claimed, rel_tol=1e-6, abs_tol=1e-9)
        return holds, f"{'the same' if holds else 'not the same'} as {claimed:.6g}, with the card's versions and CPU"
    holds = abs(found - claimed) <= interval + 1e-9
    where = "inside" if holds else "outside of"
    what = ", ".join(f"{name} {versions[name]}" for name in changed[:3]) + (", ..." if len(changed) > 3 else "")
    return holds, f"{where} {claimed:.4g} ± {interval:.2g}, which was measured with {what}"
