"""Hold the Lightning callbacks of a run, one file each."""
