"""Hold the experiment trackers of a run, one file each."""
