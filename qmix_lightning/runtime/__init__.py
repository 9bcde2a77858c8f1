"""The process: random numbers, collectives, signals, memory and threads, messages."""
