"""Checkpoint files, the replay segments beside them, and how a run is resumed from both."""
