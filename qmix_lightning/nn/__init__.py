"""Define network parts that agents, mixers and algorithms share."""
