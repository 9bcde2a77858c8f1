"""Acting and collecting: the policy's copy, the collector, its process, and evaluation."""
