"""Read what PyMARL, PyMARL2 and EPyMARL save (``agent.th``, ``mixer.th``, ``opt.th``), under this package's names.

Networks: the recurrent agent of all three (``rnn``, ``n_rnn``) and EPyMARL's without memory (``use_rnn=False``), alone
or with their ``vdn`` or ``qmix`` mixer. Their target networks are not saved, so they are copies of the others, as after
an update of the targets.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qmix_lightning.checkpoint.files import load_plain
from qmix_lightning.checkpoint.manifest import not_finite
from qmix_lightning.errors import CheckpointError
from qmix_lightning.runtime.regular_files import read_json, read_regular
from qmix_lightning.runtime.text import error_line, printable
from qmix_lightning.types import EnvSpec

__all__ = ["PymarlRun", "read_pymarl"]

_MOST_BYTES = 256 * 2**20
_MOST_JSON_BYTES = 2**20

_RECURRENT = {
    "fc1.weight": "encode.weight",
    "fc1.bias": "encode.bias",
    "rnn.weight_ih": "input_gates.weight",
    "rnn.weight_hh": "state_gates.weight",
    "rnn.bias_ih": "input_gates.bias",
    "rnn.bias_hh": "state_gates.bias",
    "fc2.weight": "head.weight",
    "fc2.bias": "head.bias",
}
_FEEDFORWARD = {
    "fc1.weight": "encode.weight",
    "fc1.bias": "encode.bias",
    "rnn.weight": "hidden.weight",
    "rnn.bias": "hidden.bias",
    "fc2.weight": "head.weight",
    "fc2.bias": "head.bias",
}
_AGENTS = {"recurrent": _RECURRENT, "feedforward": _FEEDFORWARD}
_PYMARL2_MIXER = {
    "hyper_w1.": "hyper_w_1.",
    "hyper_w2.": "hyper_w_final.",
    "hyper_b1.0.": "hyper_b_1.",
    "hyper_b2.": "V.",
}
"""PyMARL2's names of the parts of its ``qmix`` mixer (``nmix``) -> PyMARL's."""
_MIXER = {"hyper_w_1": "weight_1", "hyper_w_final": "weight_2", "hyper_b_1": "bias_1", "V": "bias_2"}
_ALGORITHMS = {"qmix": "qmix", "vdn": "vdn", "none": "iql"}

_NUMBERS = {
    "gamma": "algorithm.gamma",
    "double_q": "algorithm.double_q",
    "target_update_interval": "algorithm.target_update_every",
    "target_update_interval_or_tau": "algorithm.target_update_every",
    "lr": "optimizer.lr",
    "optim_alpha": "optimizer.alpha",
    "optim_eps": "optimizer.eps",
    "grad_norm_clip": "optimizer.max_grad_norm",
    "batch_size": "replay.batch_size",
    "buffer_size": "replay.capacity",
    "epsilon_start": "exploration.epsilon_start",
    "epsilon_finish": "exploration.epsilon_finish",
    "epsilon_anneal_time": "exploration.epsilon_anneal_steps",
}
"""Their settings -> this package's, of those that are numbers or flags and mean the same."""
_OF_RMSPROP = {"optim_alpha", "optim_eps"}  # in their settings also where Adam trains, which reads neither


@dataclass(frozen=True)
class PymarlRun:
    """A folder of theirs.

    Attributes:
        source: the folder.
        agent, mixer: tensors by their names; those of PyMARL2's mixer by PyMARL's.
        settings: their ``config.json``; empty if there is none.
        adam: it was trained by Adam.
        square_avg: RMSprop's running averages, by this package's names of the parameters; ``None`` if there are none.
    """

    source: Path
    agent: dict[str, Tensor]
    mixer: dict[str, Tensor]
    settings: dict[str, Any] = field(default_factory=dict)
    adam: bool = False
    square_avg: dict[str, Tensor] | None = None

    @property
    def algorithm(self) -> str:
        """This package's name of the algorithm, by what the mixer holds or, without one, by what the settings say."""
        if self.mixer:
            return "qmix"
        return _ALGORITHMS.get(str(self.settings.get("mixer", "none")).lower(), "iql")

    @property
    def agent_name(self) -> str:
        """This package's name of the agents' network."""
        return next(name for name, names in _AGENTS.items() if names.keys() == self.agent.keys())

    def overrides(self, spec: EnvSpec) -> list[str]:
        """Return settings of ``qmix-train`` that make networks of these sizes and go on as PyMARL would.

        Args:
            spec: of the environment that it was trained in.

        Raises:
            CheckpointError: the network is not for this environment.
        """
        hidden, inputs = self.agent["fc1.weight"].shape
        actions = self.agent["fc2.weight"].shape[0]
        if actions != spec.n_actions:
            raise CheckpointError(
                f"{self.source} has values of {actions} actions, and this environment has {spec.n_actions}"
            )
        last, identity = self._inputs(spec, inputs)
        typed = [
            "preset=pymarl",
            f"algorithm={self.algorithm}",
            "algorithm.dead_agents=no_op",
            f"optimizer={'adam' if self.adam else 'rmsprop'}",
            f"agent={self.agent_name}",
            f"agent.hidden_dim={hidden}",
            f"agent.use_last_action={str(last).lower()}",
            f"agent.use_agent_id={str(identity).lower()}",
        ]
        if self.mixer:
            typed += self._mixer_overrides()
        for theirs, ours in _NUMBERS.items():
            if self.adam and theirs in _OF_RMSPROP:
                continue
            value = self.settings.get(theirs)
            if isinstance(value, bool):
                typed.append(f"{ours}={str(value).lower()}")
            elif isinstance(value, int | float) and not (theirs.endswith("_or_tau") and value <= 1):
                typed.append(f"{ours}={value:.0f}" if float(value).is_integer() else f"{ours}={value!r}")
        return typed

    def _mixer_overrides(self) -> list[str]:
        deep = "hyper_w_1.0.weight" in self.mixer
        embed = self.mixer["hyper_b_1.bias"].shape[0]
        hidden = self.mixer["hyper_w_1.0.weight"].shape[0] if deep else 64
        return [
            "mixer=qmix_pymarl",
            f"mixer.embed_dim={embed}",
            f"mixer.hypernet_layers={1 + deep}",
            f"mixer.hypernet_dim={hidden}",
        ]

    def _inputs(self, spec: EnvSpec, inputs: int) -> tuple[bool, bool]:
        """Return whether the last action and the agent's identity are among the inputs of the network."""
        said = [self.settings.get(name) for name in ("obs_last_action", "obs_agent_id")]
        fitting = [
            (last, identity)
            for last in (True, False)
            for identity in (True, False)
            if spec.obs_dim + last * spec.n_actions + identity * spec.n_agents == inputs
            and all(s in (None, v) for s, v in zip(said, (last, identity), strict=True))
        ]
        if not fitting:
            raise CheckpointError(
                f"{self.source} has a network of {inputs} inputs, and this environment gives observations of "
                f"{spec.obs_dim}, {spec.n_actions} actions and {spec.n_agents} agents"
            )
        return fitting[0]

    def weights(self) -> dict[str, Tensor]:
        """Return the acting network's tensors by this package's names, without ``policy.``."""
        names = _AGENTS[self.agent_name]
        return {f"agent.{names[name]}": value[None].clone() for name, value in self.agent.items()}

    def learner_weights(self) -> dict[str, Tensor]:
        """Return mixer and targets by this package's names."""
        mixer = {_mixer_name(name): value for name, value in self.mixer.items()}
        return {
            **{f"mixer.{name}": value for name, value in mixer.items()},
            **{f"target_policy.{name}": value for name, value in self.weights().items()},
            **{f"target_mixer.{name}": value for name, value in mixer.items()},
        }


def read_pymarl(folder: Path, config: Path | None = None) -> PymarlRun:
    """Read a folder of PyMARL's; nothing in it is run.

    Args:
        folder: with ``agent.th``, and ``mixer.th`` and ``opt.th`` if they were saved.
        config: their ``config.json``; ``None``: that in the folder, if there is one.

    Raises:
        CheckpointError: it is missing, damaged, hostile, or of another network than these.
    """
    agent = _tensors(folder / "agent.th")
    if all(agent.keys() != names.keys() for names in _AGENTS.values()):
        strange = sorted(agent.keys() ^ _RECURRENT.keys())[0]
        raise CheckpointError(
            f"{folder / 'agent.th'} is not of PyMARL's recurrent agent (agent=rnn): '{printable(strange)}'"
        )
    mixer = _tensors(folder / "mixer.th") if (folder / "mixer.th").exists() else {}
    mixer = {_pymarl_name(name): value for name, value in mixer.items()}
    for name in mixer:
        if _mixer_name(name) is None:
            raise CheckpointError(f"{folder / 'mixer.th'} is not of PyMARL's qmix mixer: '{printable(name)}'")
    if mixer and "hyper_b_1.bias" not in mixer:
        raise CheckpointError(f"{folder / 'mixer.th'} is not of PyMARL's qmix mixer: it lacks 'hyper_b_1.bias'")
    _check_shapes(agent, folder / "agent.th")
    run = PymarlRun(folder, agent, mixer, _settings(config or folder / "config.json", config is not None))
    outputs = str(run.settings.get("agent_output_type", "q"))
    if outputs != "q" or (folder / "critic.th").exists():
        raise CheckpointError(
            f"{folder} is of an actor with a critic (as COMA, IPPO and MAPPO train them): it gives no values of actions"
        )
    if str(run.settings.get("qmix_pos_func", "abs")) != "abs":
        raise CheckpointError(
            f"{folder}: qmix_pos_func '{printable(run.settings['qmix_pos_func'])}' is not here, only abs"
        )
    state = _optimizer_state(folder / "opt.th") if (folder / "opt.th").exists() else {}
    return replace(run, adam=_is_adam(state, run.settings), square_avg=_square_avg(folder / "opt.th", state, run))


def _check_shapes(agent: Mapping[str, Tensor], path: Path) -> None:
    hidden = agent["fc1.bias"].shape[0] if agent["fc1.bias"].dim() == 1 else -1
    wanted = {name: 2 if "weight" in name else 1 for name in agent}
    if any(agent[name].dim() != wanted[name] for name in agent) or agent["fc1.weight"].shape[0] != hidden:
        raise CheckpointError(f"{path} holds tensors of shapes that no agent has")


def _pymarl_name(name: str) -> str:
    """Return PyMARL's name of a tensor of PyMARL2's mixer; any other name as it is."""
    for theirs, pymarls in _PYMARL2_MIXER.items():
        if name.startswith(theirs):
            return pymarls + name.removeprefix(theirs)
    return name


def _mixer_name(name: str) -> Any:
    """Return this package's name of a tensor of their mixer; ``None`` if there is none."""
    begin, _, rest = name.partition(".")
    if begin not in _MIXER:
        return None
    deep = rest.count(".") == 1 or begin == "hyper_b_1"
    return f"{_MIXER[begin]}.{rest}" if deep else f"{_MIXER[begin]}.0.{rest}"


def _load(path: Path) -> Any:
    """Load a file of theirs: torch's present format, or that of torch before 1.6."""
    read_regular(path, _MOST_BYTES)
    if zipfile.is_zipfile(path):
        return load_plain(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # made-up contents raise anything
        raise CheckpointError(f"{path} cannot be read: {printable(error_line(error), 200)}") from error


def _tensors(path: Path) -> dict[str, Tensor]:
    found = _load(path)
    if not isinstance(found, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) and value.is_floating_point()
        for name, value in found.items()
    ):
        raise CheckpointError(f"{path} holds no network")
    tensors = {name: value.detach().float() for name, value in found.items()}
    if wrong := not_finite(tensors):
        raise CheckpointError(f"{path} holds NaN or infinity in '{printable(wrong[0])}'")
    return tensors


def _settings(path: Path, typed: bool) -> dict[str, Any]:
    """Return numbers, flags and texts of their ``config.json``; nothing else of it is read."""
    if not typed and not path.exists():
        return {}
    content = read_json(path, _MOST_JSON_BYTES)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no settings")
    return {name: value for name, value in content.items() if isinstance(value, bool | int | float | str)}


def _optimizer_state(path: Path) -> Mapping[Any, Any]:
    """Return an optimiser's state of each parameter, by its number; empty if there is none."""
    found = _load(path)
    state = found.get("state") if isinstance(found, Mapping) else None
    return state if isinstance(state, Mapping) else {}


def _is_adam(state: Mapping[Any, Any], settings: Mapping[str, Any]) -> bool:
    """Return whether Adam trained, by what it left or else by the settings; EPyMARL has no other for these."""
    if state:
        return any(isinstance(values, Mapping) and "exp_avg_sq" in values for values in state.values())
    return settings.get("optimizer") == "adam" or "use_rnn" in settings


def _square_avg(path: Path, state: Mapping[Any, Any], run: PymarlRun) -> dict[str, Tensor] | None:
    """Return RMSprop's averages; ``None`` if another optimiser was used. They are in the order of the parameters."""
    names = [f"policy.{name}" for name in run.weights()]
    names += [f"mixer.{_mixer_name(name)}" for name in run.mixer]
    values = [*(value[None] for value in run.agent.values()), *run.mixer.values()]
    if set(state) != set(range(len(names))):
        return None
    averages: dict[str, Tensor] = {}
    for number, (name, value) in enumerate(zip(names, values, strict=True)):
        average = state[number].get("square_avg") if isinstance(state[number], Mapping) else None
        if not isinstance(average, Tensor) or average.numel() != value.numel():
            return None
        averages[name] = average.detach().float().reshape(value.shape).clone()
    if not_finite(averages) or any((average < 0).any() for average in averages.values()):
        raise CheckpointError(f"{path} holds averages that RMSprop cannot have")
    return averages
