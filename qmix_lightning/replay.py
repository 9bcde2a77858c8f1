"""The episode store: whole episodes without padding, in one ring of steps."""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from qmix_lightning.types import EnvSpec, TrajectoryBatch

__all__ = ["Episode", "EpisodeReplay"]


@dataclass
class Episode:
    """One finished episode of ``L`` joint steps.

    Shapes: ``obs [L+1, N, O]``, ``state [L+1, S]``, ``avail_actions [L+1, N, A]``, ``agent_mask [L+1, N]``,
    ``actions [L, N]``, ``reward [L]``.
    """

    obs: Tensor
    state: Tensor
    avail_actions: Tensor
    agent_mask: Tensor
    actions: Tensor
    reward: Tensor
    terminated: bool
    truncated: bool

    @property
    def length(self) -> int:
        return self.reward.shape[0]


@dataclass
class _Record:
    start: int
    length: int
    terminated: bool
    truncated: bool


_STEP_FIELDS = ("actions", "reward")
_ROW_FIELDS = tuple(f.name for f in fields(Episode) if f.type == "Tensor" and f.name not in _STEP_FIELDS)
_INITIAL_ROWS = 1024


class EpisodeReplay:
    """The last ``capacity`` episodes, each in consecutive rows of one ring.

    Which episodes are held depends on how many were added and on nothing else, so a resumed store, laid out differently
    in memory, samples the same batches. Episodes have ever-growing ids.

    Args:
        spec: sizes of the environment.
        capacity: episodes to hold; the oldest leaves first.
    """

    def __init__(self, spec: EnvSpec, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"the replay capacity must be at least 1 episode, not {capacity}")
        self.spec = spec
        self.capacity = capacity
        self.next_id = 0
        self._records: deque[_Record] = deque()
        self._rows = _INITIAL_ROWS
        self._write = 0
        self._store = self._allocate(self._rows)

    def __len__(self) -> int:
        return len(self._records)

    @property
    def first_id(self) -> int:
        """The id of the oldest episode held."""
        return self.next_id - len(self._records)

    def _allocate(self, rows: int) -> dict[str, Tensor]:
        n, a, s = self.spec.n_agents, self.spec.n_actions, self.spec
        action_dtype = torch.uint8 if a <= 256 else torch.int32
        return {
            "obs": torch.empty(rows, n, s.obs_dim),
            "state": torch.empty(rows, s.state_dim),
            "avail_actions": torch.empty(rows, n, a, dtype=torch.bool),
            "agent_mask": torch.empty(rows, n, dtype=torch.bool),
            "actions": torch.zeros(rows, n, dtype=action_dtype),
            "reward": torch.zeros(rows),
        }

    def add(self, episode: Episode) -> int:
        """Copy an episode in, dropping the oldest one when full; returns its id."""
        if episode.length < 1:
            raise ValueError("an episode needs at least one step")
        if len(self._records) == self.capacity:
            self._records.popleft()
        need = episode.length + 1
        start = self._place(need)
        while start is None:
            self._grow(need)
            start = self._place(need)
        for name, store in self._store.items():
            value: Tensor = getattr(episode, name)
            store[start : start + value.shape[0]].copy_(value)
            store[start + value.shape[0] : start + need] = 0  # step fields are a row shorter; an old episode was there
        self._write = start + need
        self._records.append(_Record(start, episode.length, episode.terminated, episode.truncated))
        self.next_id += 1
        return self.next_id - 1

    def _place(self, need: int) -> int | None:
        """Where ``need`` consecutive free rows begin, or ``None``; live rows run from the oldest to the write."""
        if not self._records:
            return 0 if need <= self._rows else None
        oldest = self._records[0].start
        if self._write > oldest:  # live rows do not wrap: free are the tail and the head before the oldest
            if self._write + need <= self._rows:
                return self._write
            return 0 if need <= oldest else None
        return self._write if self._write + need <= oldest else None

    def _grow(self, need: int) -> None:
        old, old_records = self._store, list(self._records)
        self._rows = max(2 * self._rows, need)
        self._store = self._allocate(self._rows)
        self._records.clear()
        self._write = 0
        for record in old_records:
            end = self._write + record.length + 1
            for name, store in self._store.items():
                store[self._write : end].copy_(old[name][record.start : record.start + record.length + 1])
            self._records.append(_Record(self._write, record.length, record.terminated, record.truncated))
            self._write = end

    def get(self, episode_id: int) -> Episode:
        """The episode of that id, as views into the store."""
        record = self._records[episode_id - self.first_id]
        rows = slice(record.start, record.start + record.length + 1)
        steps = slice(record.start, record.start + record.length)
        values = {n: s[steps if n in _STEP_FIELDS else rows] for n, s in self._store.items()}
        return Episode(terminated=record.terminated, truncated=record.truncated, **values)

    def sample(self, batch_size: int, key: int) -> TrajectoryBatch:
        """``batch_size`` different episodes, uniformly, as a pure function of ``key`` and of what is held.

        Rows are as long as the longest episode drawn.
        """
        if batch_size > len(self):
            raise ValueError(f"cannot draw {batch_size} different episodes from {len(self)}")
        rng = np.random.Generator(np.random.Philox(key=key))
        drawn = [self._records[i] for i in rng.choice(len(self), batch_size, replace=False)]
        return self._gather(drawn)

    def _gather(self, drawn: list[_Record]) -> TrajectoryBatch:
        starts = torch.tensor([r.start for r in drawn])
        lengths = torch.tensor([r.length for r in drawn])
        size, horizon = len(drawn), int(lengths.max())
        # Rows past the end repeat the last one: they are padding, and never another episode's data.
        offsets = torch.minimum(torch.arange(horizon + 1), lengths[:, None])
        index = (starts[:, None] + offsets).flatten()  # [B * (T+1)]
        rows = {n: s.index_select(0, index).unflatten(0, (size, horizon + 1)) for n, s in self._store.items()}
        time = torch.arange(horizon)
        last = time == lengths[:, None] - 1  # [B, T]
        return TrajectoryBatch(
            obs=rows["obs"],
            state=rows["state"],
            avail_actions=rows["avail_actions"],
            agent_mask=rows["agent_mask"],
            actions=rows["actions"][:, :-1].long(),
            reward=rows["reward"][:, :-1],
            terminated=last & torch.tensor([r.terminated for r in drawn])[:, None],
            truncated=last & torch.tensor([r.truncated for r in drawn])[:, None],
            filled=time < lengths[:, None],
        )

    def export(self, first_id: int, last_id: int) -> dict[str, Tensor]:
        """Episodes ``first_id`` to ``last_id`` (excluded), joined along time, for a segment file."""
        episodes = [self.get(i) for i in range(first_id, last_id)]
        joined = {n: torch.cat([getattr(e, n) for e in episodes]) for n in self._store}
        joined["lengths"] = torch.tensor([e.length for e in episodes])
        joined["terminated"] = torch.tensor([e.terminated for e in episodes])
        joined["truncated"] = torch.tensor([e.truncated for e in episodes])
        return joined

    def restore(self, first_id: int, segment: dict[str, Tensor], oldest_id: int) -> None:
        """Add a segment's episodes from ``oldest_id`` on; ``first_id`` is the id of the segment's first."""
        row = step = 0
        for i, length in enumerate(segment["lengths"].tolist()):
            if first_id + i >= max(oldest_id, self.next_id):
                values = {
                    n: segment[n][step : step + length] if n in _STEP_FIELDS else segment[n][row : row + length + 1]
                    for n in self._store
                }
                terminated, truncated = bool(segment["terminated"][i]), bool(segment["truncated"][i])
                self.next_id = first_id + i
                self.add(Episode(**values, terminated=terminated, truncated=truncated))
            row += length + 1
            step += length

    def content_hash(self) -> str:
        """SHA-256 over ids and contents in order; equal for equal stores whatever their layout."""
        digest = hashlib.sha256(f"{self.first_id}:{self.next_id}".encode())
        for i in range(self.first_id, self.next_id):
            episode = self.get(i)
            digest.update(f"{episode.length},{episode.terminated},{episode.truncated};".encode())
            for name in self._store:
                digest.update(getattr(episode, name).contiguous().numpy().tobytes())
        return digest.hexdigest()

    def nbytes(self) -> int:
        """Bytes allocated for steps."""
        return sum(t.nbytes for t in self._store.values())
