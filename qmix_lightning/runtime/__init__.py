"""Serve the rest of the package: random numbers, collectives, signals, threads, freed bytes, transfers, short texts."""
