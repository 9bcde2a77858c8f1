"""What float32 means on a GPU, in one place for products and for cuDNN's recurrent kernels."""

from __future__ import annotations

import torch

__all__ = ["set_matmul_precision"]


def set_matmul_precision(precision: str) -> None:
    """``highest``: float32; ``high``: TF32, ten bits of mantissa; ``medium``: bfloat16 where there is a kernel for it.

    cuDNN allows TF32 unless it is told not to, so the GRU would use it where products do not.
    """
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = precision != "highest"
