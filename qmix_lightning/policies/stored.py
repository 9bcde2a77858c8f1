"""Hold what a reference stands for: an acting network with its settings, and the learner's part if it is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from qmix_lightning.agents.policy import Policy
from qmix_lightning.agents.stochastic_policy import StochasticPolicy
from qmix_lightning.algorithms.base import Learner
from qmix_lightning.checkpoint.manifest import not_finite
from qmix_lightning.components import build_learner, build_policy, check_sizes, policy_class
from qmix_lightning.config.resume import refuse_untyped_imports
from qmix_lightning.errors import CheckpointError, ConfigurationError
from qmix_lightning.policies.team import Team
from qmix_lightning.runtime.text import did_you_mean, printable
from qmix_lightning.types import EnvSpec

__all__ = ["POLICY_PREFIX", "Provenance", "StoredPolicy"]

POLICY_PREFIX = "policy."
"""What the names of the acting network's tensors begin with among a learner's."""

_MOST_LAYERS = 64
_SETTINGS_OF_ALL = ("kwargs", "team", "opponents")
"""Settings that every environment's section may have, whether it does or not."""
_SIZES_THAT_MATTER = ("n_agents", "n_actions", "obs_dim")


@dataclass(frozen=True)
class Provenance:
    """Where a policy comes from: the run's seed, its joint steps, its threads, and the versions it was trained with."""

    seed: int = 0
    env_steps: int = 0
    num_threads: int = 1
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredPolicy:
    """An opened policy. Nothing of it is trusted to name a module, a path or an address.

    Attributes:
        source: what messages call it: a path or a name.
        spec: of the environment that it was trained in.
        env, agent, mixer, algorithm: sections of the configuration, as ``conf/`` has them.
        weights: the acting network's, by the names of its ``state_dict``.
        learner_weights: everything else that the learner has (mixer, critics, targets, statistics), by the names of
            *its* ``state_dict``; ``None`` if the reference does not hold them.
        mask_before_softmax: of a stochastic policy, see
            :func:`~qmix_lightning.agents.stochastic_policy.floored_log_policy`.
        provenance: where it comes from.
        card: what is claimed of it and by which command that was measured, see
            :mod:`qmix_lightning.policies.card`; ``None``: nothing.
        optimizer: state of RMSprop by parameter (``square_avg``), where another program's files had it.
    """

    source: str
    spec: EnvSpec
    env: dict[str, Any]
    agent: dict[str, Any]
    mixer: dict[str, Any]
    algorithm: dict[str, Any]
    weights: dict[str, Tensor]
    learner_weights: dict[str, Tensor] | None = None
    mask_before_softmax: bool = True
    provenance: Provenance = Provenance()
    card: dict[str, Any] | None = None
    optimizer: dict[str, Tensor] | None = None

    @property
    def policy_class(self) -> type[Policy]:
        """The class of acting network that its algorithm trains."""
        return policy_class(self.algorithm["name"])

    def build(self) -> Policy:
        """Return the acting network with its weights.

        Raises:
            CheckpointError: sizes or names do not fit, or a weight is NaN or infinite.
        """
        self.check_policy_sizes(self.weights)
        if wrong := not_finite(self.weights):
            raise CheckpointError(
                f"{self.source} holds NaN or infinity in '{printable(wrong[0])}' and {len(wrong) - 1} more: the run "
                "had diverged"
            )
        policy = self._make_policy()
        _load(policy, self.weights, self.source)
        if isinstance(policy, StochasticPolicy):
            policy.mask_before_softmax = self.mask_before_softmax
        return policy

    def build_learner(self) -> Learner | None:
        """Return the learner with all of its weights, in evaluation mode; ``None`` if its part is not there."""
        if self.learner_weights is None:
            return None
        self.check_learner_sizes(self.learner_weights)
        learner = build_learner(self, self.spec)
        _load(learner, self._whole(self.learner_weights), self.source)
        return learner.eval()

    def check_policy_sizes(self, weights: Mapping[str, Tensor]) -> None:
        """Compare tensors, of which only shapes are looked at, with the acting network; takes no memory.

        Raises:
            CheckpointError: they are not its.
        """
        self._check_layers()
        check_sizes(self._make_policy, weights, "", self.source)

    def check_learner_sizes(self, weights: Mapping[str, Tensor]) -> None:
        """Compare tensors with what the learner has beside the acting network, as :meth:`check_policy_sizes` does."""
        self._check_layers()
        check_sizes(partial(build_learner, self, self.spec), self._whole(weights), "", self.source)

    def check_optimizer_sizes(self, state: Mapping[str, Tensor]) -> None:
        """Compare the optimiser's state with the parameters that it is of."""
        known = self._whole(self.learner_weights or {})
        for name, value in state.items():
            if name not in known or known[name].shape != value.shape:
                raise CheckpointError(f"{self.source} holds an optimiser's state of no parameter: '{printable(name)}'")

    def _make_policy(self) -> Policy:
        return build_policy(self.agent, self.spec, self.policy_class)

    def _whole(self, learner_weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return all tensors by the learner's names."""
        return {**learner_weights, **{POLICY_PREFIX + name: value for name, value in self.weights.items()}}

    def team(self, num_envs: int = 1, *, seed: int = 0, device: torch.device | str = "cpu") -> Team:
        """Return a team that acts in ``num_envs`` environments at once; ``seed`` decides what it explores."""
        return Team(self.build(), self.spec, num_envs=num_envs, seed=seed, device=device)

    def env_section(self, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the ``env`` section that it was trained with, with what was typed on top.

        Raises:
            ConfigurationError: a setting is unknown, or names what a file must not decide and was not typed.
        """
        changes = dict(changes or {})
        if not isinstance(changes.get("name", self.env["name"]), str):
            raise ConfigurationError("env.name must be the name of an environment")
        if changes.get("name", self.env["name"]) != self.env["name"]:
            return changes  # another environment altogether
        unknown = [key for key in changes if key not in self.env and key not in _SETTINGS_OF_ALL]
        if unknown:
            raise ConfigurationError(f"unknown key 'env.{unknown[0]}'{did_you_mean(unknown[0], self.env, 'env.')}")
        section = {**self.env, **changes}
        if "kwargs" in self.env or "kwargs" in changes:
            section["kwargs"] = {**(self.env.get("kwargs") or {}), **(changes.get("kwargs") or {})}
        refuse_untyped_imports(section, changes, self.source)
        return section

    def check_env(self, spec: EnvSpec) -> None:
        """Refuse an environment whose observations, actions or agents are not those that it was trained with."""
        for key in _SIZES_THAT_MATTER:
            before, now = getattr(self.spec, key), getattr(spec, key)
            if before != now:
                raise ConfigurationError(f"{self.source} was trained with {key}={before}, this environment has {now}")

    def _check_layers(self) -> None:
        """Refuse depths that no network has: making the modules alone would take for ever."""
        for section in (self.agent, self.mixer, self.algorithm):
            for key, value in section.items():
                if key.endswith("layers") and isinstance(value, int | float) and value > _MOST_LAYERS:
                    raise CheckpointError(f"{self.source} asks for {value} layers under '{printable(key)}'")


def _load(network: torch.nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load weights; what a learner counts beside its tensors (``_extra_state``) is a run's, not a policy's."""
    try:
        missing, unexpected = network.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1]
        raise CheckpointError(f"{source} does not fit its own configuration: {reason}") from None
    if wrong := [name for name in (*missing, *unexpected) if not name.endswith("_extra_state")]:
        raise CheckpointError(f"{source} does not fit its own configuration: '{printable(wrong[0])}'")
