"""What checkpoints hold, and what they must not hold."""

import torch

from support.episodes import episode


def payload(step=0, **more):
    return {
        "state_dict": {"w": torch.arange(6.0), "b": torch.tensor([True, False])},
        "config": {"seed": 1, "name": "x", "list": [1, 2.5, None]},
        "spec": {},
        "env_steps": 10 * step,
        "global_step": step,
        **more,
    }


class Hostile:
    """Unpickling this creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def grown(replay, count, length=3):
    for _ in range(count):
        replay.add(episode(replay.next_id, length))
    return replay


def manifest(segments, step=0, **more):
    """A manifest of one rank with these segments and no episode in flight."""
    rank = {"replay": segments, "next_id": segments[-1]["last_id"] if segments else 0, "collector": None}
    counters = {"updates": step, "env_steps": 10 * step}
    found = payload(step, ReplayDataModule={"counters": counters, "ranks": [rank]}, world_size=1, device="cpu", **more)
    found["config"]["rollout"] = {"num_envs": 1}
    return found


def flip(_, path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
