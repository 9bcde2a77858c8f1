"""Act and collect: the rollout policy, the collector, here, in its process or in Ray actors, opponents, evaluation."""
