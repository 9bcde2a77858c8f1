"""Options, seeds and counts of the campaign: ``pytest tests/campaign -m campaign``."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

_CAMPAIGN = pytest.StashKey["Campaign"]()


@dataclass
class Campaign:
    """What one campaign draws, how much of it, and what it has seen.

    Attributes:
        seed: decides every draw.
        size: the share of the full numbers that is played, 1 for all.
        counts: part of the campaign -> what happened -> how often.
        failures: of the cases of the test that is running.
    """

    seed: int
    size: float
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def number(self, full: int) -> int:
        """Return how many of ``full`` cases this campaign plays: one at least."""
        return max(1, round(full * self.size))

    def rng(self, part: str) -> random.Random:
        """Return the draws of a part, which do not depend on other parts."""
        return random.Random(f"{self.seed}:{part}")

    @contextlib.contextmanager
    def case(self, part: str, what: Any) -> Iterator[None]:
        """Play one case: a failure is counted and told at the end, so that the others are played too."""
        self.count(part, "played")
        try:
            yield
        except AssertionError as error:
            self.count(part, "FAILED")
            self.failures.append(f"{part}: {what}: {str(error)[:3000]}")

    def check(self) -> None:
        """Fail if a case has failed."""
        failures, self.failures = self.failures, []
        assert not failures, "\n\n".join(failures)

    def count(self, part: str, what: str, number: int = 1) -> None:
        """Count what happened, for the table at the end."""
        self.counts.setdefault(part, Counter())[what] += number


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("campaign")
    group.addoption("--campaign-seed", type=int, default=0, help="decides what the campaign draws (0)")
    group.addoption("--campaign-size", type=float, default=0.02, help="share of the full numbers, 1 for all (0.02)")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_CAMPAIGN] = Campaign(config.getoption("--campaign-seed"), config.getoption("--campaign-size"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    campaign = config.stash[_CAMPAIGN]
    if not campaign.counts:
        return
    terminalreporter.section(f"campaign: seed {campaign.seed}, size {campaign.size:g}")
    for part, counts in sorted(campaign.counts.items()):
        shown = ", ".join(f"{number} {what}" for what, number in sorted(counts.items()))
        terminalreporter.line(f"{part}: {shown}")


@pytest.fixture
def campaign(pytestconfig: pytest.Config) -> Campaign:
    """The campaign of this session."""
    return pytestconfig.stash[_CAMPAIGN]
