"""Act and collect: the rollout policy, the collector, its process, and evaluation."""
