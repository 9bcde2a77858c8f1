"""Layers as single operations against the plain ones."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F

from qmix_lightning.nn.fused_linear import product_over_rows, rectified_linear, weight_and_table


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 3, 5), (300, 7, 16), (40, 16, 7)])
def test_a_rectified_layer(rows, inputs, outputs):
    torch.manual_seed(rows)
    given = [torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs)]
    mine, plain = ([t.clone().requires_grad_() for t in given] for _ in range(2))
    values, expected = rectified_linear(*mine), torch.relu(F.linear(*plain))
    close(values, expected)
    gradient = torch.randn_like(values)
    for one, other in zip(
        torch.autograd.grad(values, mine, gradient), torch.autograd.grad(expected, plain, gradient), strict=True
    ):
        close(one, other)


def test_a_rectified_layer_of_inputs_without_a_gradient():
    x, weight = torch.randn(4, 3), torch.randn(2, 3, requires_grad=True)
    rectified_linear(x, weight, torch.zeros(2, requires_grad=True)).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("widths", [(3, 9), (9, 3), (4, 4)])
@pytest.mark.parametrize("leading", [(), (2,)])
def test_products_over_rows(widths, leading):
    left, right = (torch.randn(*leading, 30, width) for width in widths)
    close(product_over_rows(left, right), torch.einsum("...ma,...mb->...ab", left, right))


SEEN = [seen for seen in product([0, 4], [False, True], [False, True]) if any(seen)]


@pytest.mark.parametrize(("obs_dim", "last_action", "agent_id"), SEEN)
def test_a_first_layer_taken_apart(obs_dim, last_action, agent_id):
    """For each agent and action before: the table's row is the layer of the one-hots alone."""
    n, a, h = 3, 2, 5
    size = obs_dim + last_action * a + agent_id * n
    given = torch.randn(1, h, size), torch.randn(1, h)
    mine, plain = ([t.clone().requires_grad_() for t in given] for _ in range(2))
    settings = {"obs_dim": obs_dim, "n_agents": n, "n_actions": a, "last_action": last_action, "agent_id": agent_id}
    of_obs, table = weight_and_table(*mine, **settings)
    one_hots = torch.zeros(n, 1 + a, size)
    for agent in range(n):
        for code in range(1 + a):
            if last_action and code:
                one_hots[agent, code, obs_dim + code - 1] = 1.0
            if agent_id:
                one_hots[agent, code, size - n + agent] = 1.0
    expected = F.linear(one_hots, plain[0][0], plain[1][0]).flatten(0, 1)  # [N * (1 + A), H]
    close(table, expected)
    close(of_obs, plain[0][:, :, :obs_dim])
    gradients = torch.randn_like(of_obs), torch.randn_like(table)
    of_mine = torch.autograd.grad((of_obs, table), mine, gradients)
    outputs = (plain[0][:, :, :obs_dim], expected)
    for one, other in zip(of_mine, torch.autograd.grad(outputs, plain, gradients), strict=True):
        close(one, other)
