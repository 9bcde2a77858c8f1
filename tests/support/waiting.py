"""A stand-in for a GPU that never answers: tensors on torch's ``meta`` device have no values to be asked for."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, ClassVar

import pytest
import torch
from pytorch_lightning import Callback
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


class Questions(TorchDispatchMode):
    """Counts operations whose result a GPU would have to be waited for."""

    asked: ClassVar[list[str]] = []
    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique", "bincount", "equal")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name.startswith("index") and any(
            isinstance(leaf, Tensor) and leaf.dtype == torch.bool for leaf in tree_flatten(args[1:2])[0]
        )
        if by_mask or any(name.startswith(n) for n in self.NAMES):
            self.asked.append(name)
        return func(*args, **(kwargs or {}))


class Watch(Callback):
    """Notes the questions between a batch's arrival and the end of its update, in a real run."""

    def __init__(self) -> None:
        self._mode: Questions | None = None

    def on_train_batch_start(self, *_: Any) -> None:
        self._mode = Questions()
        self._mode.__enter__()

    def on_train_batch_end(self, *_: Any) -> None:
        assert self._mode is not None
        self._mode.__exit__(None, None, None)
        WATCHED.append(len(Questions.asked))


WATCHED: list[int] = []
"""Questions asked until the end of each update."""
