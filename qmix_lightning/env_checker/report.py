"""List the checks of an environment, and record and report which of them passed or failed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from qmix_lightning.runtime.moved import warn_renamed

__all__ = ["CHECKS", "CheckReport", "CheckResult", "failures", "report"]

CHECKS = {
    "runs": "legal actions are executed without an error, and what is handed over stays as it was",
    "spec": "shapes, dtypes, sizes and names are those of the spec",
    "finite": "observations, state, rewards and metrics are finite numbers",
    "masks": "a mask leaves every agent that is alive an action; padded actions are illegal",
    "death": "a dead agent shows zeros and may only do nothing (action 0)",
    "accounts": "every agent that acted has its reward, termination and truncation",
    "ends": "an episode is terminated or truncated, never both, and says which",
    "limit": "an episode limit is declared and kept",
    "auto-reset": "the last observation is the true successor: nothing resets itself",
    "seeding": "the same seed and the same actions give the same episode",
    "state": "the global state is the same for the same seed and actions",
    "slots": "an episode does not depend on its slot or its neighbours",
    "pause": "an environment that is not stepped keeps its state",
    "reset": "a reset leaves the other environments alone",
    "unfinished": "a reset in the middle of an episode starts a clean one",
    "close": "it closes twice, can be created again, and closes no other instance",
    "keywords": "an unknown setting is refused",
}
"""Every check by its short name, in the order of reports."""

Status = Literal["ok", "failed", "note", "unseen"]


@dataclass(frozen=True)
class CheckResult:
    """One line of a report on a check.

    The check passed (``ok``), failed (``failed``) or was not tried (``unseen``); a ``note`` is something that may be
    meant, but that the environment's author should know of.
    """

    check: str
    status: Status
    message: str

    @property
    def promise(self) -> str:
        """Return :attr:`check` under its name of 0.1.0, which is removed in 0.3.0."""
        warn_renamed("CheckResult.promise", "CheckResult.check")
        return self.check


class CheckReport:
    """Collects check results; a check that fails in the same way again is counted, not repeated."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, str, str], list[str]] = {}  # by check, status and kind
        self._seen: set[str] = set()
        self._unseen: dict[str, str] = {}

    def seen(self, *checks: str) -> None:
        """Record that these checks were tried."""
        self._seen.update(checks)

    def unseen(self, check: str, why: str) -> None:
        """Record that this check could not be tried."""
        self._unseen.setdefault(check, why)

    def fail(self, check: str, kind: str, message: str) -> None:
        """Record that a check failed; ``kind`` distinguishes ways of failing it."""
        self._add(check, "failed", kind, message)

    def note(self, check: str, message: str, kind: str | None = None) -> None:
        """Record what may be right; of those of one ``kind`` the first is told, and how many there are."""
        self._add(check, "note", kind or message, message)

    def _add(self, check: str, status: str, kind: str, message: str) -> None:
        assert check in CHECKS
        self._told.setdefault((check, status, kind), []).append(message)

    def failed(self, *checks: str) -> bool:
        """Return whether any of these (or of all) checks failed."""
        return any(status == "failed" and (not checks or name in checks) for name, status, _ in self._told)

    def results(self) -> list[CheckResult]:
        """Return everything, in the order of ``CHECKS``; one line at least for each."""
        found = []
        for name, sentence in CHECKS.items():
            lines = []
            for status in ("failed", "note"):
                for key, (message, *again) in self._told.items():
                    if key[:2] == (name, status):
                        more = f" (and {len(again)} more)" if again else ""
                        lines.append(CheckResult(name, status, message + more))
            if not any(line.status == "failed" for line in lines):
                if name in self._seen:
                    lines.insert(0, CheckResult(name, "ok", sentence))
                else:
                    lines.insert(0, CheckResult(name, "unseen", self._unseen.get(name, "not tried")))
            found.extend(lines)
        return found


def failures(results: Iterable[CheckResult]) -> list[CheckResult]:
    """Return the results of the checks that failed."""
    return [result for result in results if result.status == "failed"]


def report(results: Iterable[CheckResult]) -> str:
    """Return the results as people read them, a line each."""
    marks = {"ok": "ok", "failed": "FAILED", "note": "note", "unseen": "-"}
    width = max(map(len, CHECKS))
    return "\n".join(f"  {marks[f.status]:<6}  {f.check:<{width}}  {f.message}" for f in results)
