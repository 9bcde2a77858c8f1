"""What is written for Hydra is read back as it was."""

from __future__ import annotations

from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from qmix_lightning.config.tree import literal

VALUES = [
    None,
    True,
    3,
    1e-5,
    "",
    "a b",
    "it's",
    "größe",
    "runs/ä_1",
    "a\\b",
    "a\\",
    "\\'",
    "a,b",
    "${x}",
    ["a b", "c\\d", 1],
    {"a": "x y"},
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_is_read_back(value: Any):
    assert OverridesParser.create().parse_override(f"key={literal(value)}").value() == value
