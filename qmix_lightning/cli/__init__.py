"""Support the commands: Hydra around a task, overrides, messages, and what ``qmix-envs`` lists and writes."""
