"""Network parts that agents, mixers and algorithms share."""
