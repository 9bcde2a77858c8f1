"""The packed recurrent unit beside torch's own, and its gradients beside finite differences."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from qmix_lightning.nn import packed_gru as gru
from qmix_lightning.nn.packed_gru import packed_gru
from support.cases import every_value

H, I = 4, 6  # noqa: E741
RAGGED, EVEN = [5, 5, 3, 3, 1], [4, 4, 4]
COUNTS = [RAGGED, EVEN, [7], [1, 1, 1]]


def arguments(counts, *lead, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    shapes = [(sum(counts), I), (counts[0], H), (3 * H, I), (3 * H, H), (3 * H,), (3 * H,)]
    return [torch.randn(*lead, *s, generator=g, dtype=dtype).requires_grad_() for s in shapes]


def torchs(inputs, initial, weight_ih, weight_hh, bias_ih, bias_hh, counts):
    """torch.nn.GRU with these parameters, on the same packed rows."""
    parameters = {"weight_ih_l0": weight_ih, "weight_hh_l0": weight_hh, "bias_ih_l0": bias_ih, "bias_hh_l0": bias_hh}
    cell = nn.GRU(I, H).to(inputs.dtype)
    packed = PackedSequence(inputs, torch.tensor(counts))
    return torch.func.functional_call(cell, parameters, (packed, initial[None]))[0].data


def gradients(function, given, counts):
    out = function(*given, counts)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=out.dtype)
    return out, torch.autograd.grad((out * weights).sum(), given)


@pytest.mark.parametrize(("block_rows", "counts"), every_value([1, 8, 1024], COUNTS))
def test_equals_torchs(counts, block_rows, monkeypatch):
    monkeypatch.setattr(gru, "_BLOCK_ROWS", block_rows)
    given = arguments(counts)
    (ours, our_gradients), (theirs, their_gradients) = (gradients(f, given, counts) for f in (packed_gru, torchs))
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(our_gradients, their_gradients)
    with torch.no_grad():
        torch.testing.assert_close(packed_gru(*given, counts), theirs)


def test_in_single_precision():
    counts = [90] * 20 + [41] * 12 + [3] * 9
    given = arguments(counts, dtype=torch.float32)
    ours, our_gradients = gradients(packed_gru, given, counts)
    exact = [t.detach().double().requires_grad_() for t in given]
    out = torchs(*exact, counts)
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(9)).double()
    for got, wanted in zip(
        (ours, *our_gradients), (out, *torch.autograd.grad((out * weights).sum(), exact)), strict=True
    ):
        assert (got - wanted).norm() < 1e-5 * wanted.norm()


@pytest.mark.parametrize("lead", [(), (2,)])
@pytest.mark.parametrize("counts", [RAGGED, EVEN])
def test_gradients_by_finite_differences(counts, lead, monkeypatch):
    monkeypatch.setattr(gru, "_BLOCK_ROWS", 7)
    assert torch.autograd.gradcheck(lambda *given: packed_gru(*given, counts), arguments(counts, *lead), fast_mode=True)


def test_networks_side_by_side_are_separate_ones():
    given = arguments(RAGGED, 3)
    out, all_gradients = gradients(packed_gru, given, RAGGED)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=out.dtype)
    for i in range(3):
        alone = [t[i].detach().requires_grad_() for t in given]
        expected = torchs(*alone, RAGGED)
        torch.testing.assert_close(out[i], expected)
        torch.testing.assert_close(
            [g[i] for g in all_gradients], list(torch.autograd.grad((expected * weights[i]).sum(), alone))
        )


@pytest.mark.parametrize("counts", [RAGGED, EVEN])
def test_the_way_of_a_gpu_is_the_same(counts):
    """What a GPU runs, on a CPU."""
    given = arguments(counts)
    ours, theirs = gradients(packed_gru, given, counts), gradients(gru._library_gru, given, counts)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("rows", [1, 10**6])
def test_low_precision_products(rows, monkeypatch):
    """Inputs in bfloat16: everything comes back in the weights' precision but the inputs' own gradient."""
    monkeypatch.setattr(gru, "_LOW_PRECISION_ROWS", rows)
    counts = [40] * 9 + [17] * 5
    given = [(t * 0.5).detach().requires_grad_() for t in arguments(counts, dtype=torch.float32)]
    low = [given[0].detach().bfloat16().requires_grad_(), *given[1:]]
    exact, exact_gradients = gradients(packed_gru, given, counts)
    out, low_gradients = gradients(packed_gru, low, counts)
    assert out.dtype == torch.float32
    assert [g.dtype for g in low_gradients] == [torch.bfloat16, *[torch.float32] * 5]
    for got, wanted in zip((out, *low_gradients), (exact, *exact_gradients), strict=True):
        assert (got - wanted).norm() < 1e-2 * wanted.norm()
    assert not torch.equal(out, exact)


def test_no_rows_at_all():
    given = [torch.zeros(0, I), torch.zeros(0, H), *arguments([1], dtype=torch.float32)[2:]]
    out = packed_gru(*given, [])
    assert out.shape == (0, H)
    assert all(g.abs().sum() == 0 for g in torch.autograd.grad(out.sum(), given[2:]))


@pytest.mark.parametrize("counts", [[1, 2], [2], [3, 1]])
def test_bad_counts(counts):
    inputs, *rest = arguments([2, 1])
    with pytest.raises(ValueError, match=r"counts must not grow and add up to 3|initial must be"):
        packed_gru(inputs, *rest, counts)
