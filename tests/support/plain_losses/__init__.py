"""Every algorithm's loss worked out by loops over episodes, steps and agents, one number at a time."""
