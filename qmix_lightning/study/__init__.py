"""Make many runs, once each, and sum them up: the index of a study, its runner, suites, statistics and reports."""
