"""Names of components: this package's own, those of other distributions, and those given from Python."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmix_lightning.errors import ConfigurationError
from qmix_lightning.mixers import MIXERS
from qmix_lightning.mixers.vdn import VDNMixer
from qmix_lightning.registry import Registry


@pytest.fixture
def other_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that publishes two mixers, one of them under a name of this package's; installed after a look."""
    monkeypatch.syspath_prepend(tmp_path)
    assert "mean" not in MIXERS.names()
    about = tmp_path / "others-2.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 2.0\n")
    (about / "entry_points.txt").write_text("[qmix_lightning.mixers]\nvdn = nowhere:Mixer\nmean = nowhere:Mixer\n")


@pytest.mark.usefixtures("other_distribution")
def test_another_distribution_adds_names_and_takes_none():
    assert MIXERS.targets()["mean"] == "nowhere:Mixer"
    assert MIXERS.load("vdn") is VDNMixer
    brought_by = {name: MIXERS.distribution_of(name) for name in ("vdn", "mean")}
    assert {name: dist and dist.name for name, dist in brought_by.items()} == {
        "vdn": "qmix-lightning",
        "mean": "others",
    }


def test_a_name_given_from_python_is_nobodys_and_is_not_taken_twice():
    registry = Registry("thing", "qmix_lightning.things", {"dict": "builtins:dict"})
    registry.register("mine", "builtins:list")
    assert registry.names() == ["dict", "mine"]
    assert (registry.load("mine"), registry.distribution_of("mine")) == (list, None)
    with pytest.raises(ConfigurationError, match="overwrite=True"):
        registry.register("mine", "builtins:set")
