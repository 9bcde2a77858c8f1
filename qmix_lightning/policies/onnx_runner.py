"""Act with exported ONNX programs: needs onnxruntime and numpy, and nothing else. Copied beside every export."""

import json
from pathlib import Path

import numpy as np
import onnxruntime  # pyright: ignore[reportMissingImports]

# pyright: basic


class OnnxTeam:
    """A team that acts from dictionaries by agent, as PettingZoo gives them; ``folder`` holds ``programs.json``."""

    def __init__(self, folder):
        self.about = json.loads((Path(folder) / "programs.json").read_text())
        sets = {agent["set"] for agent in self.about["agents"].values()}
        self.programs = {n: onnxruntime.InferenceSession(str(Path(folder) / f"set_{n}.onnx")) for n in sets}
        self.reset()

    def reset(self):
        self.last, self.memory = {}, {}

    def act(self, observations, masks=None):
        about, actions, memory = self.about, {}, {}
        for name, obs in observations.items():
            agent, mask = about["agents"][str(name)], (masks or {}).get(name)
            if isinstance(obs, dict):  # PettingZoo's other way to give masks
                obs, mask = obs["observation"], obs.get("action_mask", mask)
            obs, mask = np.ravel(obs), np.ones(agent["actions"], bool) if mask is None else np.ravel(mask)
            if (obs.size, mask.size) != (agent["obs"], agent["actions"]):  # numpy would spread one number over all
                raise ValueError(f"agent '{name}' sees {agent['obs']} numbers and has {agent['actions']} actions, not "
                                 f"{obs.size} and {mask.size}")  # fmt: skip
            if not mask.any():
                raise ValueError(f"the mask of agent '{name}' leaves no legal action")
            feeds = {
                "obs": np.zeros((1, about["obs_dim"]), np.float32),
                "last_action": np.array([self.last.get(str(name), -1)], np.int64),
                "agent_id": np.array([agent["id"]], np.int64),
                "mask": np.zeros((1, about["n_actions"]), bool),
            }
            feeds["obs"][0, : agent["obs"]], feeds["mask"][0, : agent["actions"]] = obs, mask
            zeros = [np.zeros((1, size), np.float32) for size in about["memory"]]
            feeds |= {f"memory_{i}": part for i, part in enumerate(self.memory.get(name, zeros))}
            program = self.programs[agent["set"]]
            found = program.run(about["outputs"], {wanted.name: feeds[wanted.name] for wanted in program.get_inputs()})
            actions[name], memory[name] = int(np.asarray(found[0])[0]), found[len(found) - len(zeros) :]
        # An agent that is away (dead) forgets, and did nothing.
        taken = {str(name): action for name, action in actions.items()}
        self.memory, self.last = memory, {name: taken.get(name, 0) for name in about["agents"]}
        return actions
