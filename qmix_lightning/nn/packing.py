"""Pack a batch: keep the steps at which an agent is alive, without padding, and no others.

An agent's episode is one or several *alive segments*: runs of steps at which it is alive. Its memory starts anew in
each, so segments are independent sequences; sorted by length, longest first, those still running after ``k`` steps are
always the first ones, and a recurrent network takes a step for all of them as one product of matrices.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qmix_lightning.runtime.transfer import sent, true_positions

__all__ = ["Packing"]


@dataclass(frozen=True)
class Packing:
    """Where each packed row comes from: ``P`` rows in each of ``C`` columns, ordered by step within a segment.

    With one column all agents stand below each other, as they may where all share one network; with ``N`` columns each
    agent has its own, and a packed row of a column that has run out repeats some alive agent's, to be ignored.

    Attributes:
        shape: ``(B, T, N)`` of the batch.
        columns: ``C``, 1 or ``N``.
        counts: rows of each step within a segment, never growing; they add up to ``P``.
        source: ``[P * C]`` where each packed row comes from, a position in the flattened ``[B, T, N]``.
        alive: ``[K]`` positions in the flattened ``[B, T, N]`` at which an agent is alive.
        packed_rows: ``[K]`` the packed row of each of them, ``None`` where that is ``0 .. K-1``.
        everyone: all are alive at every step, so that packed rows are the batch with time as its first axis.
        ordered: packed rows are ordered by step within a segment; if not, they are in the batch's order, all one step.
    """

    shape: tuple[int, int, int]
    columns: int
    counts: list[int]
    source: Tensor
    alive: Tensor
    packed_rows: Tensor | None
    everyone: bool = False
    ordered: bool = True

    @classmethod
    @torch.no_grad()
    def unordered(cls, alive: Tensor) -> Packing:
        """Pack ``alive [B, T, N]`` bool in one column, in the batch's order, for memoryless agents; waits as ``of``."""
        b, t, n = alive.shape
        positions = true_positions(alive)
        everyone = len(positions) == alive.numel()
        return cls((b, t, n), 1, [len(positions)], positions, positions, None, everyone=everyone, ordered=False)

    @classmethod
    @torch.no_grad()
    def of(cls, alive: Tensor, columns: int, restarts: Tensor | None = None) -> Packing:
        """Pack ``alive [B, T, N]`` bool; on a GPU this waits for it, so give it the host's and move the result.

        A segment also begins where ``restarts [B, T, N]`` is true of an agent that is alive.
        """
        b, t, n = alive.shape
        if columns not in (1, n):
            raise ValueError(f"columns must be 1 or {n}, not {columns}")
        if restarts is not None and not restarts.any():
            restarts = None
        if restarts is None and alive.all():
            everyone = torch.arange(b * t * n, device=alive.device).view(b, t, n).transpose(0, 1).flatten()
            return cls((b, t, n), columns, [b * n // columns] * t, everyone, everyone, None, everyone=True)
        mask = alive.transpose(1, 2).reshape(b * n, t)  # [B * N, T]
        before = torch.zeros_like(mask)
        before[:, 1:] = mask[:, :-1]
        if restarts is not None:
            before &= ~restarts.transpose(1, 2).reshape(b * n, t)
        position = mask.flatten().nonzero().squeeze(1)  # [K] in [B * N, T]
        begins = (mask & ~before).flatten()[position]  # [K] bool
        segment = begins.cumsum(0) - 1  # [K]
        first = begins.nonzero().squeeze(1)  # [Z] of K, one for each segment
        step = torch.arange(len(position), device=alive.device) - first[segment]  # [K], within its segment
        length = torch.bincount(segment, minlength=len(first))  # [Z]
        line = position.div(t, rounding_mode="floor")  # [K] in B * N
        column = line[first] % n if columns > 1 else torch.zeros_like(first)  # [Z]
        # Rank of a segment in its column, longest first; the sort is stable, so that equal batches are packed alike.
        order = (column * (t + 1) + t - length).argsort(stable=True)  # [Z]
        per_column = torch.bincount(column, minlength=columns)  # [C]
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=alive.device) - (per_column.cumsum(0) - per_column)[column[order]]
        # How many segments of each column reach each step; the fullest column decides how many rows a step has.
        reached = torch.bincount(column[segment] * t + step, minlength=columns * t).view(columns, t)
        rows = reached.amax(0)  # [T]
        offset = rows.cumsum(0) - rows
        packed_rows = (offset[step] + rank[segment]) * columns + column[segment]  # [K]
        counts = [count for count in rows.tolist() if count]
        positions = (line.div(n, rounding_mode="floor") * t + position % t) * n + line % n  # [K] in [B, T, N]
        if columns == 1:
            source = torch.empty_like(positions)
            source[packed_rows] = positions
            return cls((b, t, n), 1, counts, source, source, None)
        source = positions[:1].repeat(sum(counts) * columns)
        source[packed_rows] = positions
        return cls((b, t, n), columns, counts, source, positions, packed_rows)

    def to(self, device: torch.device) -> Packing:
        """Return the same for a batch that lies on ``device``, without waiting for it."""
        source = sent(self.source, device)
        alive = source if self.alive is self.source else sent(self.alive, device)
        packed_rows = None if self.packed_rows is None else sent(self.packed_rows, device)
        return replace(self, source=source, alive=alive, packed_rows=packed_rows)

    def gather(self, values: Tensor) -> Tensor:
        """Gather the packed rows of a batch: ``[B, T, N, ...]`` to ``[P, C, ...]``."""
        rest = values.shape[3:]
        return values.reshape(-1, *rest).index_select(0, self.source).view(-1, self.columns, *rest)

    def scatter(self, packed: Tensor) -> Tensor:
        """Put packed rows back in their places: ``[P, C, F]`` to ``[B, T, N, F]``, zero where no agent is alive."""
        b, t, n = self.shape
        if self.everyone and not self.ordered:
            return packed.reshape(b, t, n, packed.shape[-1])
        if self.everyone:
            return packed.reshape(t, b, n, packed.shape[-1]).transpose(0, 1).contiguous()
        flat = packed.reshape(-1, packed.shape[-1])
        if self.packed_rows is not None:
            flat = flat.index_select(0, self.packed_rows)
        return flat.new_zeros(b * t * n, flat.shape[-1]).index_copy_(0, self.alive, flat).view(b, t, n, -1)

    def initial(self, state: Tensor) -> Tensor:
        """Gather the memory before the first step's packed rows: ``[B, N, H]`` to ``[counts[0], C, H]``.

        Zero for a segment that begins later: who is alive again starts anew.
        """
        _, t, n = self.shape
        first = self.source[: self.counts[0] * self.columns if self.counts else 0]
        line = first.div(t * n, rounding_mode="floor") * n + first % n
        at_start = first.div(n, rounding_mode="floor") % t == 0
        memory = state.reshape(-1, state.shape[-1]).index_select(0, line)
        return memory.where(at_start[:, None], memory.new_zeros(())).view(-1, self.columns, state.shape[-1])
