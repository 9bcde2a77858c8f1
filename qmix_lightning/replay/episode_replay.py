"""Store whole episodes without padding, in as few bytes as they need.

An episode of ``L`` steps takes ``L + 1`` rows: one of encoded bytes (reward, actions, masks as bits), one of the state,
and one of the observation for every agent that is alive there: what a dead agent sees is zero by contract. States that
are the joined observations are not stored: they are computed from the observations when they are read. There are no
one-hot vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qmix_lightning.replay.device import DeviceRows
from qmix_lightning.replay.layout import (
    DTYPES,
    JoinedState,
    StepLayout,
    Steps,
    host_dtype,
    narrow,
    obs_dtype,
)
from qmix_lightning.replay.segment_check import check_segment
from qmix_lightning.replay.storage import PADDING_ROW, RowQueue
from qmix_lightning.runtime.transfer import pinned, sent
from qmix_lightning.types import EnvSpec, Episode, TrajectoryBatch

__all__ = ["EpisodeReplay"]


# A record's columns: where its rows begin in each queue, its steps, its observations, and how it ended.
_STEP, _OBS, _STATE, _LENGTH, _ALIVE, _TERMINATED, _TRUNCATED = range(7)


_STATE_FROM_OBS = -1
"""Stands in column ``_STATE`` of an episode whose states are the joined observations, in place of their first row."""


_UNKNOWN_LIMIT = 100


@dataclass
class _StoredEpisodes:
    """``E`` episodes as they are stored, joined: ``steps [rows, W]``, ``obs [alive_rows, O]``, ``state [rows, S]``.

    The others are of each episode: ``lengths`` and ``alive_rows`` int64, ``state_from_obs`` (its states are the joined
    observations and not in ``state``), ``terminated`` and ``truncated`` bool, all ``[E]``.
    """

    steps: NDArray[np.uint8]
    obs: NDArray[Any]
    state: NDArray[Any]
    lengths: NDArray[np.int64]
    alive_rows: NDArray[np.int64]
    state_from_obs: NDArray[np.bool_]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]


def _joined(parts: Sequence[Tensor]) -> NDArray[Any]:
    """Join tensors of episodes one after the other, in host memory."""
    return (parts[0] if len(parts) == 1 else torch.cat(list(parts))).numpy(force=True)


class EpisodeReplay:
    """A store of the last ``capacity`` episodes.

    Which episodes are held depends on how many were added and on nothing else, so a resumed store, laid out differently
    in its buffers, samples the same batches. Episodes have ever-growing ids.

    Args:
        spec: sizes of the environment.
        capacity: episodes to hold; the oldest leaves first.
        dtype: of observations and states: ``float32``, ``float16`` or ``bfloat16``. What is read is float32 again.
            Observations that are bytes are stored as bytes.
        folder: hold them in files there, which the system moves between disk and host memory; ``None``: in host memory.
        device: hold observations and states on this device, where batches then have theirs; ``None``: in host memory.
            What is held, drawn and saved is the same.
    """

    def __init__(
        self,
        spec: EnvSpec,
        capacity: int,
        *,
        dtype: str = "float32",
        folder: Path | None = None,
        device: torch.device | None = None,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"the replay capacity must be at least 1 episode, not {capacity}")
        self.spec = spec
        self.capacity = capacity
        self.dtype = DTYPES[dtype]
        self._obs_dtype = obs_dtype(spec, self.dtype)
        self.next_id = 0
        self._layout = StepLayout(spec.n_agents, spec.n_actions)
        self._joined = JoinedState(spec)
        rows = capacity * ((spec.episode_limit or _UNKNOWN_LIMIT) + 1)
        self._records = RowQueue(7, np.dtype(np.int64), expected_rows=capacity)
        self._steps = RowQueue(
            self._layout.width,
            np.dtype(np.uint8),
            expected_rows=rows,
            folder=folder,
            padding_row=self._layout.padding_row(),
        )
        if device is None:
            seen, stored = host_dtype(self._obs_dtype), host_dtype(self.dtype)
            self._obs = RowQueue(spec.obs_dim, seen, expected_rows=rows * spec.n_agents, folder=folder)
            self._state = RowQueue(spec.state_dim, stored, expected_rows=rows, folder=folder)
        else:
            states = 0 if spec.state_is_joined_obs else rows
            self._obs = DeviceRows(spec.obs_dim, self._obs_dtype, expected_rows=rows * spec.n_agents, device=device)
            self._state = DeviceRows(spec.state_dim, self.dtype, expected_rows=states, device=device)

    def __len__(self) -> int:
        return self._records.end - self._records.first

    @property
    def first_id(self) -> int:
        """Return the id of the oldest episode held."""
        return self.next_id - len(self)

    def nbytes(self) -> int:
        """Return the bytes in use."""
        return sum(queue.nbytes for queue in (self._records, self._steps, self._obs, self._state))

    # -- adding --------------------------------------------------------------------------------------------------

    def add(self, episode: Episode) -> int:
        """Copy an episode in, dropping the oldest one when full; return its id."""
        self.extend([episode])
        return self.next_id - 1

    def extend(self, episodes: Sequence[Episode]) -> list[int]:
        """Add several episodes, one after the other; together they cost little more than one, if they are short.

        Returns:
            How many are held after each.
        """
        if any(episode.length < 1 for episode in episodes):
            raise ValueError("an episode needs at least one step")
        held = [min(len(self) + i + 1, self.capacity) for i in range(len(episodes))]
        for start in range(0, len(episodes), self.capacity):
            self._append(self._encode(episodes[start : start + self.capacity]))
        return held

    def _encode(self, episodes: Sequence[Episode]) -> _StoredEpisodes:
        lengths = np.array([episode.length for episode in episodes])
        ends = np.cumsum(lengths + 1)
        alive = _joined([e.agent_mask for e in episodes])
        rows = len(alive)
        reward, actions = np.zeros(rows, np.float32), np.zeros((rows, self.spec.n_agents), np.int64)
        acting = np.ones(rows, np.bool_)
        acting[ends - 1] = False
        reward[acting], actions[acting] = _joined([e.reward for e in episodes]), _joined([e.actions for e in episodes])
        steps = self._layout.encode(Steps(reward, actions, alive, _joined([e.avail_actions for e in episodes])))
        obs = _joined([e.obs.float() for e in episodes])
        seen = obs if alive.all() else np.where(alive[..., None], obs, np.float32(0))
        state = _joined([e.state.float() for e in episodes])
        begins = ends - lengths - 1
        state_from_obs = np.logical_and.reduceat(self._joined.equal_rows(state, seen), begins)
        return _StoredEpisodes(
            steps=steps,
            obs=narrow(obs[alive], self._obs_dtype),
            state=narrow(state[np.repeat(~state_from_obs, lengths + 1)], self.dtype),
            lengths=lengths,
            alive_rows=np.add.reduceat(alive.sum(1), begins),
            state_from_obs=state_from_obs,
            terminated=np.array([e.terminated for e in episodes]),
            truncated=np.array([e.truncated for e in episodes]),
        )

    def _append(self, stored: _StoredEpisodes) -> None:
        """Add episodes, no more than the capacity."""
        count = len(stored.lengths)
        self._drop_oldest(len(self) + count - self.capacity)
        rows = stored.lengths + 1
        record = np.empty((count, 7), np.int64)
        for column, queue, values, sizes in (
            (_STEP, self._steps, stored.steps, rows),
            (_OBS, self._obs, stored.obs, stored.alive_rows),
            (_STATE, self._state, stored.state, np.where(stored.state_from_obs, 0, rows)),
        ):
            record[:, column] = queue.append(values) + np.cumsum(sizes) - sizes
        record[stored.state_from_obs, _STATE] = _STATE_FROM_OBS
        record[:, _LENGTH] = stored.lengths
        record[:, _ALIVE] = stored.alive_rows
        record[:, _TERMINATED] = stored.terminated
        record[:, _TRUNCATED] = stored.truncated
        self._records.append(record)
        self.next_id += count
        self._added(np.arange(self.next_id - count, self.next_id))

    def _added(self, ids: NDArray[np.int64]) -> None:
        """React to new episodes, which are held under their ``ids`` now (for subclasses)."""

    def clear(self) -> None:
        """Drop every episode; ids go on growing."""
        for queue in (self._records, self._steps, self._obs, self._state):
            queue.release(queue.end)

    def _drop_oldest(self, count: int) -> None:
        if count <= 0:
            return
        first = self._records.first
        records = self._records.gather(np.arange(first, first + count))
        last = records[-1].tolist()
        self._steps.release(last[_STEP] + last[_LENGTH] + 1)
        self._obs.release(last[_OBS] + last[_ALIVE])
        stored = records[records[:, _STATE] != _STATE_FROM_OBS]
        if len(stored):
            self._state.release(int(stored[-1, _STATE] + stored[-1, _LENGTH]) + 1)
        self._records.release(first + count)

    # -- reading -------------------------------------------------------------------------------------------------

    def draw(self, batch_size: int, key: int) -> tuple[NDArray[np.int64], NDArray[np.float64] | None]:
        """Draw ids of ``batch_size`` different episodes, uniformly, as a pure function of ``key`` and of what is held.

        Returns:
            The ids ``[B]``, and the probability with which each was drawn where that is not the same for all.
        """
        if batch_size > len(self):
            raise ValueError(f"cannot draw {batch_size} different episodes from {len(self)}")
        rng = np.random.Generator(np.random.Philox(key=key))
        return self.first_id + rng.choice(len(self), batch_size, replace=False), None

    def sample(self, batch_size: int, key: int) -> TrajectoryBatch:
        """Return the episodes of :meth:`draw` as a batch."""
        return self.gather(self.draw(batch_size, key)[0])

    def gather(self, ids: NDArray[np.int64], *, pin: bool = False) -> TrajectoryBatch:
        """Return the episodes of ``ids [B]`` as a batch, as long as the longest; padding shows the padding row.

        Args:
            ids: of episodes that are held.
            pin: in page-locked memory, from which a GPU copies while the CPU goes on.
        """
        records = self._records.gather(self._records.first + (ids - self.first_id))  # [B, 7]
        encoded, within = self._read_steps(records)  # [B, T+1, W], [B, T+1]
        size, rows = within.shape
        steps = self._layout.decode(encoded.reshape(size * rows, -1))
        alive = steps.agent_mask.reshape(size, -1)  # [B, (T+1)*N]
        place = records[:, _OBS, None] + np.cumsum(alive, axis=1) - 1
        n = self.spec.n_agents
        obs = self._read_floats(self._obs, np.where(alive, place, PADDING_ROW), pin).view(size, rows, n, -1)
        lengths = records[:, _LENGTH, None]  # [B, 1]
        last = np.arange(rows - 1) == lengths - 1  # [B, T]
        batch = TrajectoryBatch(
            obs=obs,
            state=self._read_states(records, within, obs, pin),
            avail_actions=torch.from_numpy(steps.avail_actions).view(size, rows, n, -1),
            agent_mask=torch.from_numpy(steps.agent_mask).view(size, rows, n),
            actions=torch.from_numpy(steps.actions).view(size, rows, n)[:, :-1],
            reward=torch.from_numpy(steps.reward).view(size, rows)[:, :-1],
            terminated=torch.from_numpy(last & (records[:, _TERMINATED, None] == 1)),
            truncated=torch.from_numpy(last & (records[:, _TRUNCATED, None] == 1)),
            filled=torch.from_numpy(within[:, 1:].copy()),
        )
        if pin:
            batch = batch.map(pinned)
        # Behind an episode's end everything is the padding row, but what dead agents show is what the environment gave:
        # only a batch without them is known to be masked.
        batch.is_masked = int(np.count_nonzero(alive)) == n * int(np.count_nonzero(within))
        return batch

    def _read_steps(self, records: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Return encoded steps ``[B, T+1, W]`` and which of them are the episode's, ``[B, T+1]``."""
        time = np.arange(int(records[:, _LENGTH].max()) + 1)
        within = time <= records[:, _LENGTH, None]
        return self._steps.gather(np.where(within, records[:, _STEP, None] + time, PADDING_ROW)), within

    def _read_floats(self, queue: RowQueue, index: NDArray[np.int64], pin: bool) -> Tensor:
        """Return rows of ``queue`` as float32 where they are held, ``[index.size, width]``."""
        if isinstance(queue, DeviceRows):
            return queue.floats(index)
        out = torch.empty(index.size, queue.width, pin_memory=pin)
        dtype = self._obs_dtype if queue is self._obs else self.dtype
        if dtype == torch.float32:
            queue.gather(index.reshape(-1), out=out.numpy())
        else:
            out.copy_(torch.from_numpy(queue.gather(index.reshape(-1))).view(dtype))  # undoes narrow()
        return out

    def _read_states(self, records: NDArray[np.int64], within: NDArray[np.bool_], obs: Tensor, pin: bool) -> Tensor:
        state_from_obs = records[:, _STATE] == _STATE_FROM_OBS  # [B]
        if state_from_obs.all():
            return self._joined.of(obs)
        size, rows = within.shape
        index = np.where(within & ~state_from_obs[:, None], records[:, _STATE, None] + np.arange(rows), PADDING_ROW)
        state = self._read_floats(self._state, index, pin).view(size, rows, -1)
        if state_from_obs.any():
            which = sent(torch.from_numpy(np.flatnonzero(state_from_obs)), obs.device)
            state.index_copy_(0, which, self._joined.of(obs.index_select(0, which)))
        return state

    def get(self, episode_id: int) -> Episode:
        """Return a copy of the episode of that id."""
        batch = self.gather(np.array([episode_id])).map(lambda t: t.cpu())
        return Episode(
            obs=batch.obs[0],
            state=batch.state[0],
            avail_actions=batch.avail_actions[0],
            agent_mask=batch.agent_mask[0],
            actions=batch.actions[0],
            reward=batch.reward[0],
            terminated=bool(batch.terminated[0, -1]),
            truncated=bool(batch.truncated[0, -1]),
        )

    # -- between processes ---------------------------------------------------------------------------------------

    def saved_beside(self) -> dict[str, Any]:
        """Return what a checkpoint holds of the store beside its episodes."""
        return {"priorities": None, "round": {}}

    def restore_beside(self, saved: Mapping[str, Any], round_extras: Sequence[str]) -> None:
        """Take over what :meth:`saved_beside` gave, when the episodes are held again.

        Args:
            saved: of a checkpoint.
            round_extras: the names of what an on-policy algorithm computes of a round.

        Raises:
            RunError: it belongs to other episodes.
        """

    def last_within(self, first_id: int, size: int) -> int:
        """Return the id before which the episodes from ``first_id`` on take ``size`` bytes at most; one always fits."""
        index = self._records.first + np.arange(first_id - self.first_id, len(self))
        records = self._records.gather(index)
        rows, states = records[:, _LENGTH] + 1, records[:, _STATE] != _STATE_FROM_OBS
        each = rows * (self._steps.row_bytes + states * self._state.row_bytes)
        each += records[:, _ALIVE] * self._obs.row_bytes
        return first_id + max(1, int(np.searchsorted(np.cumsum(each), size, side="right")))

    def export(self, first_id: int, last_id: int) -> dict[str, Tensor]:
        """Return episodes ``first_id`` to ``last_id`` (excluded) as they are stored, joined, for a segment file."""
        index = self._records.first + np.arange(first_id - self.first_id, last_id - self.first_id)
        records = self._records.gather(index)
        # What was added one after the other lies so in each queue.
        state_from_obs = records[:, _STATE] == _STATE_FROM_OBS
        stored = records[~state_from_obs]
        spans = {
            "steps": (self._steps, records[:, _STEP], records[:, _LENGTH] + 1),
            "obs": (self._obs, records[:, _OBS], records[:, _ALIVE]),
            "state": (self._state, stored[:, _STATE], stored[:, _LENGTH] + 1),
        }
        joined = {
            name: queue.gather(np.arange(begin[0], begin[-1] + count[-1]) if len(begin) else np.zeros(0, np.int64))
            for name, (queue, begin, count) in spans.items()
        }
        return {
            **{name: torch.from_numpy(rows) for name, rows in joined.items()},
            "lengths": torch.from_numpy(records[:, _LENGTH].copy()),
            "alive_rows": torch.from_numpy(records[:, _ALIVE].copy()),
            "state_from_obs": torch.from_numpy(state_from_obs),
            "terminated": torch.from_numpy(records[:, _TERMINATED] == 1),
            "truncated": torch.from_numpy(records[:, _TRUNCATED] == 1),
        }

    def restore(self, first_id: int, segment: dict[str, Tensor], oldest_id: int) -> None:
        """Add a segment's episodes from ``oldest_id`` on; ``first_id`` is the id of the segment's first.

        Raises:
            CheckpointError: the segment is of another store, or holds no episodes of this environment.
        """
        check_segment(segment, self.spec, self._layout, {"obs": self._obs_dtype, "state": self.dtype})
        columns = {
            c: segment[c].numpy() for c in ("lengths", "alive_rows", "state_from_obs", "terminated", "truncated")
        }
        rows = columns["lengths"] + 1
        sizes = {"steps": rows, "obs": columns["alive_rows"], "state": np.where(columns["state_from_obs"], 0, rows)}
        begins = {name: np.concatenate([[0], np.cumsum(size)]) for name, size in sizes.items()}
        known = max(oldest_id, self.next_id)
        for start in range(max(0, known - first_id), len(rows), self.capacity):
            stop = min(start + self.capacity, len(rows))
            parts = {name: segment[name][begin[start] : begin[stop]].numpy() for name, begin in begins.items()}
            self.next_id = first_id + start
            self._append(_StoredEpisodes(**parts, **{name: values[start:stop] for name, values in columns.items()}))
