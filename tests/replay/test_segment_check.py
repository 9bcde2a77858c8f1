"""Segments with made-up contents are refused, whatever their checksums say."""

import pytest
import torch

from qmix_lightning.errors import CheckpointError
from qmix_lightning.replay.episode_replay import EpisodeReplay
from support.checkpoints import grown
from support.episodes import spec

CHANGES = {
    "no lengths": ("lengths", None),
    "lengths of 0": ("lengths", torch.zeros_like),
    "negative lengths": ("lengths", lambda t: -t),
    "very long episodes": ("lengths", lambda t: t + 10**15),
    "lengths that are floats": ("lengths", lambda t: t.float()),
    "one length fewer": ("lengths", lambda t: t[1:]),
    "more alive than there are": ("alive_rows", lambda t: t + 50),
    "fewer steps": ("steps", lambda t: t[:3]),
    "steps of noise": ("steps", lambda t: torch.full_like(t, 255)),
    "fewer observations": ("obs", lambda t: t[:-1]),
    "observations of another width": ("obs", lambda t: t[:, :1]),
    "NaN": ("obs", lambda t: t * float("nan")),
    "states that are infinite": ("state", lambda t: t + float("inf")),
    "more states": ("state", lambda t: torch.cat([t, t])),
    "flags that are numbers": ("terminated", lambda t: t.long()),
    "text": ("truncated", lambda t: "x"),
}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_a_store_has_exported_is_taken(dtype):
    segment = grown(EpisodeReplay(spec(), 9, dtype=dtype), 5).export(0, 5)
    again = EpisodeReplay(spec(), 9, dtype=dtype)
    again.restore(0, segment, 0)
    assert len(again) == 5


@pytest.mark.parametrize("name", CHANGES)
def test_made_up_contents_are_refused(name):
    segment = grown(EpisodeReplay(spec(), 9), 5).export(0, 5)
    column, change = CHANGES[name]
    changed = {key: value for key, value in segment.items() if key != column or change is not None}
    if change is not None:
        changed[column] = change(segment[column])
    store = EpisodeReplay(spec(), 9)
    with pytest.raises(CheckpointError, match=r"^a replay segment "):
        store.restore(0, changed, 0)
    assert len(store) == 0
