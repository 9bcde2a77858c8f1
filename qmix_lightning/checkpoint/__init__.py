"""Read and write checkpoint files and the replay segments beside them, and resume runs from both."""
