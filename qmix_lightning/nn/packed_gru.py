"""Run a gated recurrent unit along packed sequences, with a backward pass of its own.

torch.nn.GRUCell's parametrisation (Cho et al. 2014, with the reset gate after the product), gates in the order reset,
update, new::

    r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)
    z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)
    n = tanh(W_in x + b_in + r (W_hn h + b_hn))
    h' = n + z (h - n)

What makes it faster than a step after the other through autograd: only the product with ``h`` waits for the step
before, everything else is done for many steps at once; a step of the backward pass is two products, since the gates'
derivatives do not depend on what flows back and are computed beforehand; and the gradients of the weights are few large
products instead of one for each step. Steps are taken in blocks that stay in the processor's cache.

Letters: ``P`` packed rows, ordered by step and within a step by length, longest sequence first; ``H`` memory; ``I``
input; ``*`` nothing, or ``C`` for so many separate networks side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

__all__ = ["packed_gru"]

_BLOCK_ROWS = 2048
"""Rows of one block, unless a single step has more: its gates take about a megabyte."""
_LOW_PRECISION_ROWS = 512
"""From how many rows on a step's product is faster in low precision, the conversions included."""


def packed_gru(
    inputs: Tensor,
    initial: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
    counts: Sequence[int],
) -> Tensor:
    """Return the memory after every step of packed sequences.

    Args:
        inputs: ``[*, P, I]``; in lower precision than the weights, large products are done in that precision and
            everything else in the weights'.
        initial: ``[*, counts[0], H]``, memory before the first step.
        weight_ih: ``[*, 3H, I]``.
        weight_hh: ``[*, 3H, H]``.
        bias_ih: ``[*, 3H]``.
        bias_hh: ``[*, 3H]``.
        counts: rows of each step, never growing, ``P`` in sum.

    Returns:
        ``[*, P, H]`` in the weights' precision.
    """
    if sum(counts) != inputs.shape[-2] or any(b > a for a, b in pairwise(counts)):
        raise ValueError(f"counts must not grow and add up to {inputs.shape[-2]}, got {list(counts)}")
    if initial.shape != (*inputs.shape[:-2], counts[0] if counts else 0, weight_hh.shape[-1]):
        raise ValueError(f"initial must be [..., {counts[0]}, {weight_hh.shape[-1]}], got {tuple(initial.shape)}")
    arguments = (inputs, initial.to(weight_hh.dtype), weight_ih, weight_hh, bias_ih, bias_hh)
    with torch.autocast(inputs.device.type, enabled=False):
        if inputs.device.type == "cuda" and inputs.dim() == 2 and counts:
            return _library_gru(*arguments, list(counts))
        if torch.is_grad_enabled() and any(t.requires_grad for t in arguments):
            return _PackedGRU.apply(*arguments, list(counts))  # pyright: ignore[reportReturnType]
        return _forward(*arguments, list(counts), keep=False)[0]


def _library_gru(
    inputs: Tensor,
    initial: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
    counts: list[int],
) -> Tensor:
    """Compute :func:`packed_gru` by torch's own GRU.

    On a GPU that is cuDNN's kernel for whole sequences, in the weights' precision or TF32. cuDNN wants its
    parameters in one piece, or it would copy them and warn about it.
    """
    parameters = (weight_ih, weight_hh, bias_ih, bias_hh)
    pieces = torch.cat([p.flatten() for p in parameters]).split([p.numel() for p in parameters])
    views = [piece.view(p.shape) for piece, p in zip(pieces, parameters, strict=True)]
    sizes = torch.tensor(counts, device="cpu")  # wherever the data are
    memory, _ = torch.gru(inputs.to(weight_ih.dtype), sizes, initial[None], views, True, 1, 0.0, True, False)
    return memory


def _blocks(counts: Sequence[int]) -> Iterator[tuple[int, int, int, int]]:
    """Yield first step, step after the last, first row and row after the last of each block."""
    step = row = 0
    while step < len(counts):
        last, rows = step + 1, counts[step]
        while last < len(counts) and rows + counts[last] <= _BLOCK_ROWS:
            rows += counts[last]
            last += 1
        yield step, last, row, row + rows
        step, row = last, row + rows


def _add_product(out: Tensor, left: Tensor, right: Tensor) -> None:
    """Add ``left @ right`` to ``out`` in place."""
    if left.dtype != out.dtype:
        out.add_(left @ right)
    elif out.dim() == 2:
        out.addmm_(left, right)
    else:
        out.baddbmm_(left, right)


def _forward(
    inputs: Tensor,
    initial: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
    counts: list[int],
    *,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the memories, and with ``keep`` the gates ``[*, P, 3H]`` (r, z and W_hn h + b_hn) and ``n [*, P, H]``."""
    size, dtype, low = weight_hh.shape[-1], weight_hh.dtype, inputs.dtype
    lead, rows, device = inputs.shape[:-2], inputs.shape[-2], inputs.device
    # tanh(x) = 2 sigmoid(2x) - 1, several times faster than torch.tanh on a CPU; the factor goes into the weights.
    double = torch.ones(3 * size, dtype=dtype, device=device)
    double[2 * size :] = 2.0
    from_input = (weight_ih * double[:, None]).to(low).mT  # [*, I, 3H]
    from_memory = weight_hh.mT.contiguous()  # [*, H, 3H]
    from_memory_low = from_memory.to(low)
    bias = bias_hh.clone()
    bias[..., : 2 * size] += bias_ih[..., : 2 * size]
    bias_new = 2.0 * bias_ih[..., 2 * size :]
    minus_one = torch.full((), -1.0, dtype=dtype, device=device)

    blocks = list(_blocks(counts))
    kept = rows if keep else max((b[3] - b[2] for b in blocks), default=0)
    gates = torch.empty((*lead, kept, 3 * size), dtype=dtype, device=device)
    new = torch.empty((*lead, kept, size), dtype=dtype, device=device)
    memory = torch.empty((*lead, rows, size), dtype=dtype, device=device)
    hidden = initial
    for first, last, begin, end in blocks:
        here = slice(begin, end) if keep else slice(0, end - begin)
        g, n, x = gates[..., here, :], new[..., here, :], inputs[..., begin:end, :]
        if low == dtype:
            g.copy_(bias[..., None, :])
            n.copy_(bias_new[..., None, :])
            _add_product(g[..., : 2 * size], x, from_input[..., : 2 * size])
            _add_product(n, x, from_input[..., 2 * size :])
        else:
            product = x @ from_input
            torch.add(product[..., : 2 * size], bias[..., None, : 2 * size], out=g[..., : 2 * size])
            torch.add(product[..., 2 * size :], bias_new[..., None, :], out=n)
            g[..., 2 * size :] = bias[..., None, 2 * size :]
        sizes = counts[first:last]
        steps = zip(
            sizes,
            g.split(sizes, -2),
            g[..., : 2 * size].split(sizes, -2),
            g[..., :size].split(sizes, -2),
            g[..., size : 2 * size].split(sizes, -2),
            g[..., 2 * size :].split(sizes, -2),
            n.split(sizes, -2),
            memory[..., begin:end, :].split(sizes, -2),
            strict=True,
        )
        for count, all_t, reset_update_t, reset_t, update_t, from_memory_t, new_t, memory_t in steps:
            if hidden.shape[-2] != count:
                hidden = hidden[..., :count, :]
            if low != dtype and count >= _LOW_PRECISION_ROWS:
                _add_product(all_t, hidden.to(low), from_memory_low)
            else:
                _add_product(all_t, hidden, from_memory)
            reset_update_t.sigmoid_()
            new_t.addcmul_(reset_t, from_memory_t, value=2.0).sigmoid_()
            torch.add(minus_one, new_t, alpha=2.0, out=new_t)
            hidden = torch.lerp(new_t, hidden, update_t, out=memory_t)
    return memory, gates, new


class _PackedGRU(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        inputs: Tensor,
        initial: Tensor,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias_ih: Tensor,
        bias_hh: Tensor,
        counts: list[int],
    ) -> Tensor:
        memory, gates, new = _forward(inputs, initial, weight_ih, weight_hh, bias_ih, bias_hh, counts, keep=True)
        ctx.save_for_backward(inputs, initial, weight_ih, weight_hh, memory, gates, new)
        ctx.counts = counts
        return memory

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        inputs, initial, weight_ih, weight_hh, memory, gates, new = ctx.saved_tensors
        with torch.autocast(gradient.device.type, enabled=False):
            grads = _backward(gradient, inputs, initial, weight_ih, weight_hh, memory, gates, new, ctx.counts)
        return (*grads, None)


def _backward(
    gradient: Tensor,
    inputs: Tensor,
    initial: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    memory: Tensor,
    gates: Tensor,
    new: Tensor,
    counts: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of inputs, initial memory, weights and biases from that of the memories ``[*, P, H]``.

    With ``g_t`` the whole gradient of ``h_t``, the gradients of the gates' sums are ``g_t`` times a factor that only
    the forward pass decides::

        n: A = (1 - z)(1 - n^2)      z: (h' - n)(1 - z)      W_hn h: A r      r: A r (1 - r) (W_hn h + b_hn)
    """
    size, dtype, low = weight_hh.shape[-1], weight_hh.dtype, inputs.dtype
    lead, device = inputs.shape[:-2], inputs.device
    blocks = list(_blocks(counts))
    largest = max((b[3] - b[2] for b in blocks), default=0)
    weight_ih_low, weight_hh_low = weight_ih.to(low), weight_hh.to(low)

    grad_inputs = torch.empty_like(inputs)
    grad_ih, grad_hh = torch.zeros_like(weight_ih), torch.zeros_like(weight_hh)
    grad_bias_hh, grad_bias_new = weight_hh.new_zeros((*lead, 3 * size)), weight_hh.new_zeros((*lead, size))
    factors = torch.empty((*lead, largest, 3, size), dtype=dtype, device=device)
    sums = torch.empty((*lead, largest, 3 * size), dtype=dtype, device=device)
    factor_new = torch.empty((*lead, largest, size), dtype=dtype, device=device)
    whole = torch.empty((*lead, largest, size), dtype=dtype, device=device)
    carried = None  # what flows into the last step of a block from the first one of the block after
    for first, last, begin, end in reversed(blocks):
        here, sizes = slice(begin, end), counts[first:last]
        reset, update, from_memory = gates[..., here, :].split(size, -1)
        n, h = new[..., here, :], memory[..., here, :]
        f, s = factors[..., : end - begin, :, :], sums[..., : end - begin, :]
        f_new, g = factor_new[..., : end - begin, :], whole[..., : end - begin, :]
        keep = 1.0 - update
        torch.ops.aten.tanh_backward.grad_input(keep, n, grad_input=f_new)
        torch.mul(f_new, reset, out=f[..., 2, :])
        torch.mul(h - n, keep, out=f[..., 1, :])
        torch.ops.aten.sigmoid_backward.grad_input(f_new * from_memory, reset, grad_input=f[..., 0, :])

        g.copy_(gradient[..., here, :])
        g_of, s_of = g.split(sizes, -2), s.split(sizes, -2)
        f_of, update_of = f.split(sizes, -3), update.split(sizes, -2)
        s_by_gate = s.unflatten(-1, (3, size)).split(sizes, -3)
        if carried is not None:
            g_of[-1][..., : carried.shape[-2], :] += carried
        for k in range(last - first - 1, -1, -1):
            torch.mul(g_of[k].unsqueeze(-2), f_of[k], out=s_by_gate[k])
            if k:
                before = g_of[k - 1][..., : sizes[k], :]
                before.addcmul_(g_of[k], update_of[k])
            else:
                before = carried = g_of[0] * update_of[0]
            if low != dtype and sizes[k] >= _LOW_PRECISION_ROWS:
                _add_product(before, s_of[k].to(low), weight_hh_low)
            else:
                _add_product(before, s_of[k], weight_hh)

        s_low = s.to(low)
        before = _memory_before(memory, initial, counts, first, last, begin).to(low)
        _add_product(grad_hh, s_low.mT, before)
        grad_bias_hh += s.sum(-2)
        # From here on the last third is the gradient as the input sees it, not multiplied by the reset gate.
        torch.mul(g, f_new, out=f_new)
        grad_bias_new += f_new.sum(-2)
        s_low[..., 2 * size :] = f_new
        _add_product(grad_ih, s_low.mT, inputs[..., here, :])
        torch.matmul(s_low, weight_ih_low, out=grad_inputs[..., here, :])
    if carried is None:
        carried = torch.zeros_like(initial)
    grad_bias_ih = torch.cat([grad_bias_hh[..., : 2 * size], grad_bias_new], dim=-1)
    return grad_inputs, carried, grad_ih, grad_hh, grad_bias_ih, grad_bias_hh


def _memory_before(memory: Tensor, initial: Tensor, counts: list[int], first: int, last: int, begin: int) -> Tensor:
    """Return the memory that the rows of steps ``first`` to ``last`` (excluded) start from; row ``begin`` is first."""
    if first > 0 and counts[first - 1] == counts[last - 1]:
        return memory[..., begin - counts[first] : begin - counts[first] + sum(counts[first:last]), :]
    parts = []
    row = begin
    for k in range(first, last):
        parts.append(initial if k == 0 else memory[..., row - counts[k - 1] : row - counts[k - 1] + counts[k], :])
        row += counts[k]
    return torch.cat(parts, dim=-2)
