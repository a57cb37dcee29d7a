"""What Triton's matrix products take their operands in."""

from __future__ import annotations

import torch
import triton.language as tl

from ..constraints import interpreted

_TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def dot_type(dtype: torch.dtype) -> tl.dtype:
    """The tensors' own dtype, but float32 for bfloat16 where Triton interprets: it would multiply bits as integers."""
    if interpreted() and dtype == torch.bfloat16:
        return tl.float32
    return _TYPES[dtype]
