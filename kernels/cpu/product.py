"""x W^T through oneDNN.

torch sends float32 products to MKL, which on processors that are not Intel's stays at AVX2: on a Zen 5 core 95 to 108
GFLOP/s beside 230 to 260 of oneDNN with AVX-512. The op is the one that torch's own compiler emits for CPUs.
"""

# M = rows, I = inputs, O = outputs

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

HAS_ONEDNN: bool = torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(x_MI: Tensor, weight_OI: Tensor) -> Tensor:
    """Return [M, O] in the dtype of both, float32 or bfloat16, accumulated in float32. No gradient."""
    if not HAS_ONEDNN or not len(x_MI):
        return F.linear(x_MI, weight_OI)
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x_MI, weight_OI, None, "none", [], ""))
