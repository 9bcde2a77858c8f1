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
        sets = sorted({agent["set"] for agent in self.about["agents"].values()})
        self.programs = {n: onnxruntime.InferenceSession(str(Path(folder) / f"set_{n}.onnx")) for n in sets}
        self.reset()

    def reset(self):
        self.last, self.memory = dict.fromkeys(self.about["agents"], -1), {}

    def act(self, observations, masks=None):
        actions, masks = {}, dict(masks or {})
        for name in [agent for agent in self.about["agents"] if agent not in observations]:
            self.last[name], self.memory[name] = 0, None  # dead: it forgets
        for name, obs in observations.items():
            if isinstance(obs, dict):  # PettingZoo's other way to give masks
                obs, masks[name] = obs["observation"], obs["action_mask"]
            agent, mask = self.about["agents"][name], np.zeros((1, self.about["n_actions"]), bool)
            mask[0, : agent["actions"]] = masks.get(name, True)
            padded = np.zeros((1, self.about["obs_dim"]), np.float32)
            padded[0, : agent["obs"]] = np.ravel(obs)
            feeds = {"obs": padded, "last_action": np.array([self.last[name]]), "agent_id": np.array([agent["id"]])}
            memory = self.memory.get(name) or [np.zeros((1, size), np.float32) for size in self.about["memory"]]
            feeds |= {"mask": mask, **{f"memory_{i}": part for i, part in enumerate(memory)}}
            program = self.programs[agent["set"]]
            wanted = {given.name for given in program.get_inputs()}
            found = program.run(self.about["outputs"], {k: v for k, v in feeds.items() if k in wanted})
            self.memory[name] = found[len(found) - len(memory) :]
            self.last[name] = actions[name] = int(found[0][0])  # pyright: ignore[reportIndexIssue]
        return actions
