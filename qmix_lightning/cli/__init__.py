"""The command line: Hydra around a task, overrides, messages, and qmix-envs."""
