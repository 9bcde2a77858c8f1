"""What an environment promises, and the record of which promises were seen kept or broken."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

__all__ = ["PROMISES", "Finding", "Ledger", "failures", "report"]

PROMISES = {
    "plays": "legal actions are played without an error, and what is handed over stays as it was",
    "spec": "shapes, dtypes, sizes and names are those of the spec",
    "finite": "observations, state, rewards and metrics are finite numbers",
    "masks": "a mask leaves every living agent an action; padded actions are illegal",
    "death": "a dead agent shows zeros and may only do nothing (action 0)",
    "accounts": "every agent that acted has its reward, termination and truncation",
    "ends": "an episode is terminated or truncated, never both, and says which",
    "limit": "an episode limit is declared and kept",
    "last observation": "the last observation is the true successor: nothing resets itself",
    "seeding": "the same seed and the same actions give the same episode",
    "state": "the global state is the same for the same seed and actions",
    "slots": "an episode does not depend on its slot or its neighbours",
    "pause": "an environment that is not stepped keeps its state",
    "reset": "a reset leaves the other environments alone",
    "unfinished": "a reset in the middle of an episode starts a clean one",
    "close": "it closes twice, opens again, and closes no other instance",
    "keywords": "an unknown setting is refused",
}
"""Every promise by its short name, in the order of reports."""

Status = Literal["ok", "failed", "note", "unseen"]


@dataclass(frozen=True)
class Finding:
    """One line of a report: a promise kept (``ok``), broken (``failed``), not put to the test (``unseen``), or a
    ``note``: something that may be meant, but that its author should know of."""

    promise: str
    status: Status
    message: str


class Ledger:
    """Collects findings; a promise that breaks in the same way again is counted, not repeated."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, str, str], str] = {}
        self._times: dict[tuple[str, str, str], int] = {}
        self._seen: set[str] = set()
        self._unseen: dict[str, str] = {}

    def seen(self, *promises: str) -> None:
        """These promises were put to the test."""
        self._seen.update(promises)

    def unseen(self, promise: str, why: str) -> None:
        """This promise could not be put to the test."""
        self._unseen.setdefault(promise, why)

    def fail(self, promise: str, kind: str, message: str) -> None:
        """A promise is broken; ``kind`` tells ways of breaking it apart."""
        self._add(promise, "failed", kind, message)

    def note(self, promise: str, message: str) -> None:
        self._add(promise, "note", message, message)

    def _add(self, promise: str, status: str, kind: str, message: str) -> None:
        assert promise in PROMISES
        key = (promise, status, kind)
        self._first.setdefault(key, message)
        self._times[key] = self._times.get(key, 0) + 1

    def failed(self, *promises: str) -> bool:
        """Whether any of these (or of all) promises was broken."""
        return any(status == "failed" and (not promises or name in promises) for name, status, _ in self._first)

    def findings(self) -> list[Finding]:
        """Everything, in the order of ``PROMISES``; one line at least for each."""
        found = []
        for name, sentence in PROMISES.items():
            lines = []
            for status in ("failed", "note"):
                for key, message in self._first.items():
                    if key[:2] == (name, status):
                        again = self._times[key] - 1
                        lines.append(Finding(name, status, f"{message} (and {again} more)" if again else message))
            if not any(line.status == "failed" for line in lines):
                if name in self._seen:
                    lines.insert(0, Finding(name, "ok", sentence))
                else:
                    lines.insert(0, Finding(name, "unseen", self._unseen.get(name, "not put to the test")))
            found.extend(lines)
        return found


def failures(findings: Iterable[Finding]) -> list[Finding]:
    """The broken promises."""
    return [finding for finding in findings if finding.status == "failed"]


def report(findings: Iterable[Finding]) -> str:
    """The findings as people read them, a line each."""
    marks = {"ok": "ok", "failed": "FAILED", "note": "note", "unseen": "-"}
    width = max(map(len, PROMISES))
    return "\n".join(f"  {marks[f.status]:<6}  {f.promise:<{width}}  {f.message}" for f in findings)
