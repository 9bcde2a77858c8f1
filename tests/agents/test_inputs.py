"""What an agent is told: observation, last action and its own number."""

import pytest
import torch

from qmix_lightning.agents.inputs import InputBuilder
from support.small_policies import PLAIN_INPUTS


def builder(**switches):
    return InputBuilder(
        n_agents=2,
        n_actions=3,
        obs_dim=2,
        **{**dict.fromkeys(("use_obs", "use_last_action", "use_agent_id", "normalize_obs"), False), **switches},
    )


OBS = torch.tensor([[[1.5, 2.5], [3.5, 4.5]]])
LAST = torch.tensor([[2, -1]])
PARTS = {
    "use_obs": [[1.5, 2.5], [3.5, 4.5]],
    "use_last_action": [[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]],  # -1: there was none
    "use_agent_id": [[1.0, 0.0], [0.0, 1.0]],
}


@pytest.mark.parametrize("switches", [s for i in range(1, 8) if (s := [k for b, k in enumerate(PARTS) if i >> b & 1])])
def test_input_layout(switches):
    """Observation, last action, agent: in this order, each of its own width."""
    built = builder(**dict.fromkeys(switches, True))
    x = built(OBS, LAST)
    expected = [[v for part in PARTS if part in switches for v in PARTS[part][i]] for i in range(2)]
    assert x.tolist() == [expected]
    assert built.output_dim == len(expected[0])


def test_inputs_along_time_and_in_other_dtypes():
    built = builder(**PLAIN_INPUTS)
    obs, last = OBS[None].expand(4, 3, 2, 2).double(), LAST[None].expand(4, 3, 2)
    x = built(obs, last)
    assert x.shape == (4, 3, 2, 7)
    assert x.dtype == torch.float64
    assert torch.equal(x[2, 1].float(), built(OBS, LAST)[0])


def test_empty_input_is_refused():
    with pytest.raises(ValueError, match="the agent's input is empty: switch on use_obs, use_last_action or use_agent"):
        builder()


def test_wrong_shapes_are_named():
    built = builder(use_obs=True)
    with pytest.raises(ValueError, match=r"obs must end in \(2, 2\), got \(1, 2, 5\)"):
        built(torch.zeros(1, 2, 5), LAST)
    with pytest.raises(ValueError, match=r"last_action must be \(1, 2\), got \(1, 3\)"):
        built(OBS, torch.zeros(1, 3, dtype=torch.int64))
