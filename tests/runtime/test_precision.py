"""What float32 means on a GPU."""

import pytest
import torch

from qmix_lightning.runtime.resources import set_matmul_precision


@pytest.fixture(autouse=True)
def _as_before():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.parametrize(("precision", "tf32"), [("highest", False), ("high", True), ("medium", True)])
def test_products_and_recurrent_kernels_agree(precision: str, tf32: bool):
    torch.backends.cudnn.allow_tf32 = not tf32
    set_matmul_precision(precision)
    assert torch.get_float32_matmul_precision() == precision
    assert torch.backends.cudnn.allow_tf32 is tf32
