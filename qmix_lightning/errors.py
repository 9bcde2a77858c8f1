"""Define the errors that a user sees as one line; each carries the exit status of the command it ends."""

from __future__ import annotations

from signal import SIGINT, Signals

__all__ = [
    "CheckpointError",
    "ConfigurationError",
    "EnvironmentContractError",
    "EnvironmentFault",
    "FailedTogether",
    "InvalidEpisodeError",
    "MissingDependencyError",
    "QMixLightningError",
    "RunDiverged",
    "RunError",
    "RunInterrupted",
    "StartupError",
]


class QMixLightningError(Exception):
    """The base class of these errors. ``exit_status`` is what the command ends with."""

    exit_status = 1


class ConfigurationError(QMixLightningError):
    """Raised when the user asked for something that does not exist or does not fit."""

    exit_status = 2


class MissingDependencyError(ConfigurationError):
    """Raised when a package is not installed; the message has the command that installs it."""


class EnvironmentContractError(ConfigurationError):
    """Raised when an environment cannot be trained on, e.g. its actions are not discrete."""


class CheckpointError(ConfigurationError):
    """Raised when a checkpoint is missing, damaged, or of another run."""


class RunError(QMixLightningError):
    """Raised when something failed while running."""


class RunDiverged(RunError):
    """Raised when a loss, a gradient or a parameter is not a number any more; nothing of that was saved."""


class InvalidEpisodeError(RunError):
    """Raised by an environment when the episode in flight means nothing any more, e.g. after its game restarted.

    The episode is dropped and the environment recreated.
    """


class StartupError(RunError):
    """Raised by an environment whose simulator did not start, after the attempts of its own.

    It ends the run if none of its kind has ever started; later it is a fault like others.
    """


class EnvironmentFault(RunError):
    """Raised when environments failed more often than a run tolerates, or broke their contract; carries the cause."""


class FailedTogether(QMixLightningError):
    """Raised in every process of a run that ends because one of them failed; those without a message print nothing."""

    def __init__(self, exit_status: int, message: str = "") -> None:
        super().__init__(message)
        self.exit_status = exit_status


class RunInterrupted(QMixLightningError):
    """Raised when a signal asked the run to end; the run was saved before. The message ends in ``more``."""

    def __init__(self, signal_number: int, more: str = "") -> None:
        super().__init__(f"stopped by {'Ctrl-C' if signal_number == SIGINT else Signals(signal_number).name}{more}")
        self.signal_number = signal_number
        self.exit_status = 128 + signal_number
