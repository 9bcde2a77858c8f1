"""Compute the first layer on packed inputs, without one-hots and without a copy of the observations.

``W [obs, one_hot(last action), one_hot(agent)] + b`` is ``W_obs obs`` plus one row of a table that has an entry for
each agent and action before: what the one-hots pick from ``W``, and the bias. Observations are gathered block by block,
and multiplied while they are in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qmix_lightning.nn.fused_linear import product_over_rows, weight_and_table
from qmix_lightning.nn.layers import AgentLinear

__all__ = ["PackedInputs", "first_layer"]

_BLOCK_ROWS = 2048
_BLOCK_BYTES = 1 << 19
"""Of the observations of one block: they stay in the processor's cache while they are multiplied."""


@dataclass(frozen=True)
class PackedInputs:
    """The parts of an agent's input, not joined, for the ``P * C`` packed rows of a packing.

    Attributes:
        obs: ``[R, O]``, from which packed rows are gathered; ``O`` is 0 where the agent does not see the observation.
        source: ``[P * C]`` int64, the row of ``obs`` for each packed row.
        columns: ``C``.
        code: ``[P * C]`` int64, ``agent * (1 + A) + 1 + last action`` (no action yet: -1).
        n_actions: ``A``.
        use_last_action: the agent sees its last action.
        use_agent_id: the agent sees who it is.
        low_precision: what the observations are multiplied in, if not in the weights' precision.
        scaling: mean and deviation ``[O]`` by which observations are normalised, if they are.
    """

    obs: Tensor
    source: Tensor
    columns: int
    code: Tensor
    n_actions: int
    use_last_action: bool
    use_agent_id: bool
    low_precision: torch.dtype | None = None
    scaling: tuple[Tensor, Tensor] | None = None

    def blocks(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """Yield blocks: which packed rows, and their observations ``[C, rows, O]``; each is overwritten by the next."""
        width = self.obs.shape[1]
        # Rows that begin at a multiple of 16 numbers are multiplied faster.
        aligned = -(-width // 16) * 16
        most = min(_BLOCK_ROWS, max(256, _BLOCK_BYTES // max(1, aligned * self.obs.itemsize)))
        step = max(1, most // self.columns) * self.columns
        if self.obs.device.type == "cuda":  # there few large products are fast, and blocks have no cache to stay in
            step, aligned = max(1, len(self.source)), width
        buffer = self.obs.new_empty(step, aligned, dtype=dtype)[:, :width]
        for start in range(0, len(self.source), step):
            packed_rows = slice(start, min(start + step, len(self.source)))
            rows = self.obs.index_select(0, self.source[packed_rows])
            if self.scaling is not None:
                rows = rows.sub_(self.scaling[0]).div_(self.scaling[1]).clamp_(-10.0, 10.0)
            if width != aligned or rows.dtype != dtype:
                rows = buffer[: len(rows)].copy_(rows)
            yield packed_rows, rows.unflatten(0, (-1, self.columns)).transpose(0, 1)


def first_layer(layer: AgentLinear, inputs: PackedInputs, *, rectify: bool = False) -> Tensor:
    """Return ``layer`` of the joined input: ``[P, C, H]``, in the precision that the observations are multiplied in.

    Args:
        layer: the first layer.
        inputs: of the packed rows.
        rectify: a ReLU of it, which costs less here.
    """
    with torch.autocast(inputs.obs.device.type, enabled=False):
        return _FirstLayer.apply(*_weight_and_table(layer, inputs), None, inputs, rectify)[0]  # pyright: ignore


def first_layer_pair(
    layer: AgentLinear, target: AgentLinear, inputs: PackedInputs, *, rectify: bool = False
) -> tuple[Tensor, Tensor]:
    """Return ``first_layer`` of ``layer`` and, without a gradient, of ``target``; the observations are read once."""
    with torch.no_grad():
        other = _weight_and_table(target, inputs)
    with torch.autocast(inputs.obs.device.type, enabled=False):
        return _FirstLayer.apply(*_weight_and_table(layer, inputs), other, inputs, rectify)  # pyright: ignore


def _weight_and_table(layer: AgentLinear, inputs: PackedInputs) -> tuple[Tensor, Tensor]:
    """Return what observations are multiplied by, ``[C, H, O]``, and what is added for a code, ``[N * (1 + A), H]``."""
    n, a = len(layer.sets), inputs.n_actions
    if layer.n_sets == 1:
        return weight_and_table(
            layer.weight,
            layer.bias,
            obs_dim=inputs.obs.shape[1],
            n_agents=n,
            n_actions=a,
            last_action=inputs.use_last_action,
            agent_id=inputs.use_agent_id,
        )
    sizes = [inputs.obs.shape[1], inputs.use_last_action * a, inputs.use_agent_id * n]
    of_obs, of_action, of_agent = layer.weight.split(sizes, dim=-1)  # [sets, H, ...]
    table = _for_each_agent(layer, layer.bias)[:, None].expand(-1, 1 + a, -1)  # [N, 1 + A, H]
    if inputs.use_last_action:
        columns = _for_each_agent(layer, of_action).mT  # [N, A, H]
        table = table + torch.cat([torch.zeros_like(columns[:, :1]), columns], dim=1)
    if inputs.use_agent_id:
        everyone = torch.arange(n, device=inputs.code.device)
        table = table + of_agent[layer.sets, :, everyone][:, None]  # [N, 1, H]
    weight = of_obs if inputs.columns == 1 else of_obs[layer.sets]  # [C, H, O]
    return weight, table.flatten(0, 1)


def _for_each_agent(layer: AgentLinear, parameter: Tensor) -> Tensor:
    """Expand ``[sets, ...]`` to ``[N, ...]``."""
    if layer.n_sets == 1:
        return parameter.expand(len(layer.sets), *parameter.shape[1:])
    return parameter[layer.sets]


class _FirstLayer(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        weight: Tensor,
        table: Tensor,
        target: tuple[Tensor, Tensor] | None,
        inputs: PackedInputs,
        rectify: bool,
    ) -> tuple[Tensor, ...]:
        """Return ``[P, C, H]``, and a second one for weight and table of a ``target`` layer."""
        ctx.inputs, ctx.rows, ctx.weight_dtype, ctx.rectify = inputs, table.shape[0], weight.dtype, rectify
        ctx.dtype = dtype = inputs.low_precision or weight.dtype
        size = table.shape[1]
        if target is not None:
            weight, table = torch.cat([weight, target[0]], dim=1), torch.cat([table, target[1]], dim=1)
        width = table.shape[1]
        out = table.new_empty(len(inputs.source) // inputs.columns, inputs.columns, width, dtype=dtype)
        flat = out.view(-1, width)
        factor = weight.to(dtype).mT.contiguous()  # [C, O, H]
        for packed_rows, rows in inputs.blocks(dtype):
            block = (
                flat[packed_rows] if dtype == weight.dtype else table.new_empty(rows.shape[1] * rows.shape[0], width)
            )
            torch.index_select(table, 0, inputs.code[packed_rows], out=block)
            columns = block.unflatten(0, (-1, inputs.columns)).transpose(0, 1)  # [C, rows, H]
            if dtype != weight.dtype:
                columns += torch.matmul(rows, factor)
            elif inputs.columns == 1:
                columns[0].addmm_(rows[0], factor[0])
            else:
                columns.baddbmm_(rows, factor)
            if rectify:
                block.relu_()
            if dtype != weight.dtype:
                flat[packed_rows] = block
        outputs = (out,) if target is None else out.split(size, dim=-1)
        ctx.set_materialize_grads(False)  # or the target layer's, which nobody asks for, would be zeros of its size
        ctx.save_for_backward(outputs[0] if rectify else None)
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        inputs: PackedInputs = ctx.inputs
        size, width = gradient.shape[-1], inputs.obs.shape[1]
        flat = gradient.reshape(-1, size)
        of_weight = flat.new_zeros(inputs.columns, size, width, dtype=ctx.weight_dtype)
        of_table = flat.new_zeros(ctx.rows, size, dtype=ctx.weight_dtype)
        (out,) = ctx.saved_tensors
        with torch.autocast(inputs.obs.device.type, enabled=False):
            for packed_rows, rows in inputs.blocks(ctx.dtype):
                block = flat[packed_rows]
                if ctx.rectify:
                    here = slice(packed_rows.start // inputs.columns, packed_rows.stop // inputs.columns)
                    block = torch.ops.aten.threshold_backward(block, out[here].reshape(-1, size), 0)
                columns = block.unflatten(0, (-1, inputs.columns)).transpose(0, 1)  # [C, rows, H]
                if ctx.dtype != ctx.weight_dtype or width < size:
                    of_weight += product_over_rows(columns, rows)
                elif inputs.columns == 1:
                    of_weight[0].addmm_(columns[0].mT, rows[0])
                else:
                    of_weight.baddbmm_(columns.mT, rows)
                of_table.index_add_(0, inputs.code[packed_rows], block.to(ctx.weight_dtype))
        return of_weight, of_table, None, None, None
