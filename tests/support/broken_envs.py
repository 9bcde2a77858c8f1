"""Sound environments, and copies of them that each break one check."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from pettingzoo import ParallelEnv

from qmix_lightning.types import EnvSpec, Observation, Transition


class Walk(ParallelEnv):
    """Three walkers on a line; the last one dies early. Ends by termination or at the limit, as the seed decides."""

    metadata: dict[str, Any] = {"name": "walk", "episode_metrics": ("won",)}  # noqa: RUF012
    episode_limit = 8
    start_anywhere = True

    def __init__(self, width: float = 2.0) -> None:
        self.width = width
        self.possible_agents = ["w_0", "w_1", "w_2"]
        self.state_space = spaces.Box(-np.inf, np.inf, (4,), np.float32)

    def observation_space(self, agent: str) -> Any:
        return spaces.Box(-np.inf, np.inf, (3,), np.float32)

    def action_space(self, agent: str) -> Any:
        return spaces.Discrete(3)

    def new_rng(self, seed: int | None) -> Any:
        return np.random.default_rng(seed)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.rng = self.new_rng(seed)
        return self.begin()

    def begin(self) -> Any:
        self.t = 0
        self.agents = list(self.possible_agents)
        self.x = self.rng.normal(size=3) if self.start_anywhere else np.zeros(3)
        self.death = int(self.rng.integers(2, 5))
        self.length = 6 if self.rng.random() < 0.3 else self.episode_limit
        return self.observe(self.agents), self.infos(self.agents)

    def step(self, actions: dict[str, int]) -> Any:
        acted = list(self.agents)
        for agent, action in actions.items():
            assert self.mask(agent)[action], f"illegal action {action} of {agent}"
            self.x[self.possible_agents.index(agent)] += (0.0, -0.2, 0.2)[action]
        self.x += 0.01 * self.rng.normal(size=3)
        self.t += 1
        over = self.t >= self.length
        timeout = over and self.length == self.episode_limit
        terminations = {a: (over and not timeout) or (a == "w_2" and self.t == self.death) for a in acted}
        truncations = {a: timeout and not terminations[a] for a in acted}
        rewards = {a: float(-abs(self.x[self.possible_agents.index(a)])) for a in acted}
        self.agents = [a for a in acted if not terminations[a] and not truncations[a]]
        infos = self.infos(acted)
        if over:
            infos["w_0"]["won"] = 1.0
        return self.observe(acted), rewards, terminations, truncations, infos

    def observe(self, agents: list[str]) -> dict[str, Any]:
        numbers = {a: self.possible_agents.index(a) for a in agents}
        return {a: np.array([self.x[i], self.t / 8, i], np.float32) for a, i in numbers.items()}

    def mask(self, agent: str) -> Any:
        x = self.x[self.possible_agents.index(agent)]
        return np.array([1, x > -self.width, x < self.width], np.int8)

    def infos(self, agents: list[str]) -> dict[str, Any]:
        return {a: {"action_mask": self.mask(a)} for a in agents}

    def state(self) -> Any:
        return np.append(self.x, self.t).astype(np.float32)

    def close(self) -> None:
        pass


class InParts(Walk):
    """``Walk`` whose actions have two parts, the first of which leaves no choice."""

    def action_space(self, agent: str) -> Any:
        return spaces.MultiDiscrete([1, 3], start=[4, 7])

    def step(self, actions: dict[str, Any]) -> Any:
        assert all(self.action_space(agent).contains(action) for agent, action in actions.items())
        return super().step({agent: int(action[1]) - 7 for agent, action in actions.items()})


class InATuple(Walk):
    """``Walk`` whose observations are tuples of float64 and of lists."""

    def observation_space(self, agent: str) -> Any:
        return spaces.Tuple([spaces.Box(-np.inf, np.inf, (2,), np.float32), spaces.MultiBinary(2)])

    def observe(self, agents: list[str]) -> dict[str, Any]:
        return {a: (o[:2].astype(np.float64), [True, False]) for a, o in super().observe(agents).items()}


class Space:
    """A space of no library: its kind is its class, and it can tell nothing of values."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


class WithItsOwnSpaces(Walk):
    """``Walk`` with spaces that have what ``docs/interpreters.md`` asks for and nothing else."""

    Box, Discrete, Dict = (type(name, (Space,), {}) for name in ("Box", "Discrete", "Dict"))

    def action_space(self, agent: str) -> Any:
        return self.Discrete(n=3)

    def observation_space(self, agent: str) -> Any:
        return self.Dict(spaces={"where": self.Box(shape=(3,)), "kind": self.Discrete(n=2)})

    def observe(self, agents: list[str]) -> dict[str, Any]:
        return {a: {"where": o, "kind": 1} for a, o in super().observe(agents).items()}


# -- single environments ------------------------------------------------------------------------------------------


class Exits(Walk):
    def step(self, actions: Any) -> Any:
        sys.exit(0)


class ExitsInClose(Walk):
    def close(self) -> None:
        sys.exit(0)


class ExitsInState(Walk):
    def __init__(self) -> None:
        super().__init__()
        self.state_space = None

    def state(self) -> Any:
        sys.exit(0)


class ListsNobody(Walk):
    def begin(self) -> Any:
        shown = super().begin()
        del self.agents
        return shown


class ShowsNothing(Walk):
    def observe(self, agents: list[str]) -> Any:
        return None


class ShowsRaggedLists(Walk):
    def observe(self, agents: list[str]) -> dict[str, Any]:
        return {a: [[1.0], [1.0, 2.0]] for a in agents}


class NotInItsOwnSpace(WithItsOwnSpaces):
    def observe(self, agents: list[str]) -> dict[str, Any]:
        return {a: {**o, "kind": 2} for a, o in super().observe(agents).items()}


class ShowsFractionsOfBytes(Walk):
    def observation_space(self, agent: str) -> Any:
        return spaces.Box(0, 255, (3,), np.uint8)

    def observe(self, agents: list[str]) -> dict[str, Any]:
        return {a: np.array([1.0, 0.25, 255.0]) for a in agents}


class TellsInAList(Walk):
    def infos(self, agents: list[str]) -> Any:
        return [{} for _ in agents]


class TellsAList(Walk):
    def infos(self, agents: list[str]) -> dict[str, Any]:
        return {a: ["action_mask"] for a in agents}


class MaskOfTexts(Walk):
    def infos(self, agents: list[str]) -> dict[str, Any]:
        return {a: {"action_mask": ["1", "0", "1"]} for a in agents}


class PaysInWords(Walk):
    def step(self, actions: Any) -> Any:
        result = super().step(actions)
        return result[0], {agent: str(reward) for agent, reward in result[1].items()}, *result[2:]


class PaysInAList(Walk):
    def step(self, actions: Any) -> Any:
        result = super().step(actions)
        return result[0], list(result[1].values()), *result[2:]


class EndsInWords(Walk):
    def step(self, actions: Any) -> Any:
        result = super().step(actions)
        return *result[:2], dict.fromkeys(result[2], "no"), *result[3:]


class RaisesOnLegalPlay(Walk):
    def step(self, actions: Any) -> Any:
        if self.t == 2:
            raise IndexError("list index out of range")
        return super().step(actions)


class WrongShape(Walk):
    def observe(self, agents: list[str]) -> dict[str, Any]:
        shown = super().observe(agents)
        return {a: o[:2] if self.t == 3 else o for a, o in shown.items()}


class NotInItsSpace(Walk):
    def observation_space(self, agent: str) -> Any:
        return spaces.Dict({"where": spaces.Discrete(5), "clock": spaces.Box(0, 1, (1,), np.float32)})

    def observe(self, agents: list[str]) -> dict[str, Any]:
        return {a: {"where": 5 if self.t == 2 else 0, "clock": np.ones(1, np.float32)} for a in agents}


class UnknownAgent(Walk):
    def begin(self) -> Any:
        shown = super().begin()
        self.agents.append("ghost")
        return shown


class ForgetsMetric(Walk):
    def step(self, actions: Any) -> Any:
        result = super().step(actions)
        for info in result[4].values():
            info.pop("won", None)
        return result


class ShowsNaN(Walk):
    def observe(self, agents: list[str]) -> dict[str, Any]:
        shown = super().observe(agents)
        if self.t == 3:
            shown[agents[0]][0] = np.nan
        return shown


class PaysInfinity(Walk):
    def step(self, actions: Any) -> Any:
        observations, rewards, *rest = super().step(actions)
        return observations, {a: np.inf if self.t == 2 else r for a, r in rewards.items()}, *rest


class StateIsNaN(Walk):
    def state(self) -> Any:
        return super().state() * (np.nan if self.t == 4 else 1.0)


class MaskLeavesNothing(Walk):
    def infos(self, agents: list[str]) -> dict[str, Any]:
        return {a: {"action_mask": self.mask(a) * (self.t != 2)} for a in agents}


class MaskIsAdded(Walk):
    """Zero for legal and minus infinity for illegal, as some add to their logits."""

    def infos(self, agents: list[str]) -> dict[str, Any]:
        return {a: {"action_mask": np.where(self.mask(a), 0.0, -np.inf)} for a in agents}


class MaskOfWeights(Walk):
    def infos(self, agents: list[str]) -> dict[str, Any]:
        return {a: {"action_mask": self.mask(a) * 0.5} for a in agents}


class MaskTooShort(Walk):
    def infos(self, agents: list[str]) -> dict[str, Any]:
        return {a: {"action_mask": self.mask(a)[:2]} for a in agents}


class ForgetsReward(Walk):
    def step(self, actions: Any) -> Any:
        result = super().step(actions)
        result[1].pop("w_1")
        return result


class ForgetsTruncation(Walk):
    def step(self, actions: Any) -> Any:
        result = super().step(actions)
        return *result[:3], {}, result[4]


class EndsBothWays(Walk):
    def step(self, actions: Any) -> Any:
        observations, rewards, terminations, truncations, infos = super().step(actions)
        if not self.agents:
            terminations = truncations = dict.fromkeys(rewards, True)
        return observations, rewards, terminations, truncations, infos


class EndsSilently(Walk):
    def step(self, actions: Any) -> Any:
        observations, rewards, terminations, truncations, infos = super().step(actions)
        if not self.agents:
            terminations = truncations = dict.fromkeys(rewards, False)
        return observations, rewards, terminations, truncations, infos


class KeepsTheDead(Walk):
    def step(self, actions: Any) -> Any:
        result = super().step(actions)
        if self.agents and "w_2" not in self.agents:
            self.agents.append("w_2")
        return result


class Overruns(Walk):
    def begin(self) -> Any:
        shown = super().begin()
        self.length = self.episode_limit + 3
        return shown


class StaysAtItsEnd(Walk):
    def step(self, actions: Any) -> Any:
        acted = list(self.agents)
        result = super().step(actions)
        self.agents = self.agents or acted
        return result


class ResetsItself(Walk):
    """As Gymnasium's vector environments once did: what comes back at the end is the next episode's first."""

    def step(self, actions: Any) -> Any:
        _, *rest, _ = result = super().step(actions)
        if self.agents:
            return result
        observations, infos = self.begin()
        self.agents = []
        infos["w_0"]["won"] = 1.0
        return observations, *rest, infos


class ResetsItselfToOneStart(ResetsItself):
    start_anywhere = False

    def new_rng(self, seed: int | None) -> Any:
        return np.random.default_rng(0)


class ResetsItselfWithoutClock(ResetsItself):
    """Nothing but the jump back gives it away."""

    def new_rng(self, seed: int | None) -> Any:
        rng = np.random.default_rng(seed)
        self.far = rng.normal(size=3) * 50
        return rng

    def begin(self) -> Any:
        super().begin()
        self.length = self.episode_limit
        self.x = self.far + 50 * self.rng.normal(size=3)
        return self.observe(self.agents), self.infos(self.agents)

    def mask(self, agent: str) -> Any:
        return np.ones(3, np.int8)

    def observe(self, agents: list[str]) -> dict[str, Any]:
        return {a: np.array([*self.x[:2], 1.0], np.float32) for a in agents}

    def state(self) -> Any:
        return np.append(self.x, 1.0).astype(np.float32)


class ResetsItselfUnseeded(ResetsItself):
    def begin(self) -> Any:
        if getattr(self, "t", 0):
            self.rng = np.random.default_rng()
        return super().begin()


class IgnoresSeed(Walk):
    def new_rng(self, seed: int | None) -> Any:
        return np.random.default_rng()


class SeedsOnce(Walk):
    """The seed of the first reset decides all episodes."""

    def new_rng(self, seed: int | None) -> Any:
        return getattr(self, "rng", None) or np.random.default_rng(0)


class RemembersTheLastEpisode(Walk):
    """Where walkers stood at the end is not forgotten."""

    def begin(self) -> Any:
        old = getattr(self, "x", np.zeros(3)).copy() if getattr(self, "t", 0) else np.zeros(3)
        shown = super().begin()
        self.x += 0.1 * (old > 0)
        return self.observe(self.agents), shown[1]


class StateOfItsOwnMind(Walk):
    def state(self) -> Any:
        return super().state() + np.random.default_rng().normal(size=4).astype(np.float32)


class SharesOneGenerator(Walk):
    """The common mistake: seeding a generator that all instances draw from."""

    shared = np.random.RandomState(0)

    def new_rng(self, seed: int | None) -> Any:
        SharesOneGenerator.shared.seed(seed)

        class Shared:
            normal = staticmethod(SharesOneGenerator.shared.normal)
            random = staticmethod(SharesOneGenerator.shared.random_sample)
            integers = staticmethod(SharesOneGenerator.shared.randint)

        return Shared


class KeepsAnUnfinishedEpisode(Walk):
    def begin(self) -> Any:
        unfinished = bool(getattr(self, "agents", [])) and self.t > 0
        shown = super().begin()
        if unfinished:
            self.x += 1.0
            return self.observe(self.agents), self.infos(self.agents)
        return shown


class FailsToClose(Walk):
    def close(self) -> None:
        raise OSError("no such process")


class OpensOnce(Walk):
    opened = 0

    def __init__(self) -> None:
        super().__init__()
        OpensOnce.opened += 1
        if OpensOnce.opened > 4:  # one alone, three together
            raise OSError("address already in use")


class ClosesTheOthers(Walk):
    """As pygame.quit() in close() does."""

    display = False

    def __init__(self) -> None:
        super().__init__()
        ClosesTheOthers.display = True

    def step(self, actions: Any) -> Any:
        if not ClosesTheOthers.display:
            raise RuntimeError("display Surface quit")
        return super().step(actions)

    def close(self) -> None:
        ClosesTheOthers.display = False


class TakesAnything(Walk):
    def __init__(self, width: float = 2.0, **kwargs: Any) -> None:
        super().__init__(width)


# -- batched environments -----------------------------------------------------------------------------------------


class Lanes:
    """``Walk`` in torch, three agents in each of ``E`` lanes; the last one dies. A sound ``VectorEnv``."""

    limit = 8

    def __init__(self, *, num_envs: int) -> None:
        n, a, o = 3, 3, 3
        self.num_envs = num_envs
        self.device = torch.device("cpu")
        self.spec = EnvSpec(
            n_agents=n,
            n_actions=a,
            obs_dim=o,
            state_dim=n + 1,
            obs_dims=(3, 3, 2),
            action_counts=(3, 3, 2),
            agent_names=("l_0", "l_1", "l_2"),
            group_of_agent=(0, 0, 1),
            episode_limit=self.limit,
            episode_metrics=("won",),
            natively_batched=True,
        )
        self.x = torch.zeros(num_envs, n)
        self.t = torch.zeros(num_envs, dtype=torch.int64)
        self.seeds = torch.zeros(num_envs, dtype=torch.int64)
        self.closed = 0

    def noise(self, seeds: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        phase = (seeds[:, None] % 9973).double() * torch.tensor([0.7, 1.3, 2.9]) + t[:, None].double()
        return torch.sin(phase * 12.9898).float()  # [E, N]

    def reset(self, mask: torch.Tensor, seeds: torch.Tensor) -> Observation:
        self.seeds = torch.where(mask, seeds, self.seeds)
        self.t = torch.where(mask, 0, self.t)
        self.x = torch.where(mask[:, None], self.noise(self.seeds, self.t), self.x)
        return self.observe()

    def step(self, actions: torch.Tensor, active: torch.Tensor) -> Transition:
        self.advance(actions, active)
        over = self.t >= torch.where(self.seeds % 3 == 0, 6, self.limit)
        timeout = self.t >= self.limit
        return Transition(
            next=self.observe(),
            reward=-self.x.abs().sum(dim=1),
            terminated=over & ~timeout & active,
            truncated=timeout & active,
            agent_reward=-self.x.abs(),
            metrics={"won": over.float()},
        )

    def advance(self, actions: torch.Tensor, active: torch.Tensor) -> None:
        move = torch.tensor([0.0, -0.2, 0.2])[actions] + 0.01 * self.noise(self.seeds, self.t + 100)
        self.x = torch.where(active[:, None], self.x + move, self.x)
        self.t = torch.where(active, self.t + 1, self.t)

    def observe(self) -> Observation:
        e = self.num_envs
        alive = torch.ones(e, 3, dtype=torch.bool)
        alive[:, 2] = self.t < 3
        obs = torch.stack([self.x, (self.t / 8)[:, None].expand(e, 3), torch.ones(e, 3)], dim=2)  # [E, N, O]
        obs[:, 2, 2] = 0.0
        avail = torch.ones(e, 3, 3, dtype=torch.bool)
        avail[:, 2, 2] = False
        no_op = torch.tensor([True, False, False])
        return Observation(
            obs=torch.where(alive[..., None], obs, 0.0),
            state=torch.cat([self.x, self.t[:, None].float()], dim=1),
            avail_actions=torch.where(alive[..., None], avail, no_op),
            agent_mask=alive,
        )

    def close(self) -> None:
        self.closed += 1


class Float64(Lanes):
    def observe(self) -> Observation:
        shown = super().observe()
        shown.state = shown.state.double()
        return shown


class BatchedFractionsOfBytes(Lanes):
    def __init__(self, *, num_envs: int) -> None:
        super().__init__(num_envs=num_envs)
        self.spec = replace(self.spec, obs_dtype="uint8")


class WrongSize(Lanes):
    def observe(self) -> Observation:
        shown = super().observe()
        shown.obs = shown.obs[..., :2]
        return shown


class OneTooFew(Lanes):
    def __init__(self, *, num_envs: int) -> None:
        super().__init__(num_envs=max(1, num_envs - 1))


class ForgetsBatchedMetric(Lanes):
    def step(self, actions: torch.Tensor, active: torch.Tensor) -> Transition:
        outcome = super().step(actions, active)
        outcome.metrics = {}
        return outcome


class Padded(Lanes):
    def observe(self) -> Observation:
        shown = super().observe()
        shown.obs[:, 2, 2] = 1.0 * shown.agent_mask[:, 2]
        return shown


class PaddedActionLegal(Lanes):
    def observe(self) -> Observation:
        shown = super().observe()
        shown.avail_actions[:, 2, 2] = shown.agent_mask[:, 2]
        return shown


class BatchedMaskLeavesNothing(Lanes):
    def observe(self) -> Observation:
        shown = super().observe()
        shown.avail_actions[self.t == 2, 1] = False
        return shown


class DeadCanSee(Lanes):
    def observe(self) -> Observation:
        shown = super().observe()
        shown.obs[:, 2, 0] = self.x[:, 2]
        return shown


class DeadCanAct(Lanes):
    def observe(self) -> Observation:
        shown = super().observe()
        shown.avail_actions[:, 2, 1] = True
        return shown


class BatchedEndsBothWays(Lanes):
    def step(self, actions: torch.Tensor, active: torch.Tensor) -> Transition:
        outcome = super().step(actions, active)
        outcome.terminated = outcome.terminated | outcome.truncated
        return outcome


class BatchedOverruns(Lanes):
    def step(self, actions: torch.Tensor, active: torch.Tensor) -> Transition:
        self.limit = 10
        return super().step(actions, active)


class BatchedResetsItself(Lanes):
    def step(self, actions: torch.Tensor, active: torch.Tensor) -> Transition:
        outcome = super().step(actions, active)
        over = outcome.terminated | outcome.truncated
        outcome.next = self.reset(over, (self.seeds * 48271 + 1) % 2**31)
        return outcome


class StepsThePaused(Lanes):
    def advance(self, actions: torch.Tensor, active: torch.Tensor) -> None:
        super().advance(actions, torch.ones_like(active))


class DrawsForThePaused(Lanes):
    """What is shown stays the same; what happens next does not."""

    def __init__(self, *, num_envs: int) -> None:
        super().__init__(num_envs=num_envs)
        self.drawn = torch.zeros(num_envs, dtype=torch.int64)

    def reset(self, mask: torch.Tensor, seeds: torch.Tensor) -> Observation:
        self.drawn = torch.where(mask, 0, self.drawn)
        return super().reset(mask, seeds)

    def advance(self, actions: torch.Tensor, active: torch.Tensor) -> None:
        super().advance(actions, active)
        self.drawn += 1
        self.x = torch.where(active[:, None], self.x + 0.1 * self.noise(self.seeds, self.drawn), self.x)


class ResetsEveryone(Lanes):
    def reset(self, mask: torch.Tensor, seeds: torch.Tensor) -> Observation:
        self.seeds = torch.where(mask, seeds, self.seeds)
        return super().reset(mask | mask.any(), self.seeds)


class DependsOnItsSlot(Lanes):
    def noise(self, seeds: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return super().noise(seeds + torch.arange(self.num_envs), t)


class DependsOnItsNeighbours(Lanes):
    def advance(self, actions: torch.Tensor, active: torch.Tensor) -> None:
        super().advance(actions, active)
        self.x = torch.where(active[:, None], self.x + 0.1 * self.x.mean(), self.x)


class KeepsABatchedUnfinishedEpisode(Lanes):
    def reset(self, mask: torch.Tensor, seeds: torch.Tensor) -> Observation:
        unfinished = mask & (self.t > 0) & (self.t < 6)
        super().reset(mask, seeds)
        self.x[unfinished] += 1.0
        return self.observe()


class ChangesItsArguments(Lanes):
    def step(self, actions: torch.Tensor, active: torch.Tensor) -> Transition:
        outcome = super().step(actions, active)
        actions.zero_()
        return outcome


class ClosesOnce(Lanes):
    def close(self) -> None:
        super().close()
        if self.closed > 1:
            raise RuntimeError("closed already")


class TakesAnythingBatched(Lanes):
    def __init__(self, *, num_envs: int, **kwargs: Any) -> None:
        super().__init__(num_envs=num_envs)
