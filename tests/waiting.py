"""A stand-in for a GPU that never answers: tensors on torch's ``meta`` device have no values to be asked for."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

DEVICE = torch.device("meta")


def without_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast does not know the device."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)


class Crossings(TorchDispatchMode):
    """Notes every operation that has tensors of the host and of the device among its arguments and results.

    One whose result is the host's would wait; one that takes the host's waits too, unless it was asked not to.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        leaves = [leaf for leaf in tree_flatten((args, kwargs, result))[0] if isinstance(leaf, Tensor)]
        if len({leaf.device.type for leaf in leaves}) > 1:
            (there, *_) = [leaf for leaf in leaves if leaf.device.type == "cpu"]
            waits = func is not torch.ops.aten._to_copy.default or not (kwargs or {}).get("non_blocking")
            self.seen.append((f"{func}, waiting" if waits else str(func), there))
        return result
