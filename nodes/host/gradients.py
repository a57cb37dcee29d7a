"""Gradients through the host's models: its fused operations have none, so others take their place meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import comfy.model_management
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_SWITCH = "in_training"
"""The host's own switch, which its training node sets: most models then leave fused operations alone."""
_UNSWITCHED = ("comfy.ldm.cosmos.predict2", "comfy.ldm.ernie.model")
"""Where the host has models that call fused operations whatever the switch says."""


@contextmanager
def differentiable(denoiser: nn.Module) -> Iterator[None]:
    """The host's models, this one among them, compute with operations that gradients pass while the block runs."""
    management: Any = comfy.model_management
    before = getattr(management, _SWITCH, None)
    if before is not None:
        setattr(management, _SWITCH, True)
    try:
        with spelled_out(denoiser):
            yield
    finally:
        if before is not None:
            setattr(management, _SWITCH, before)


def spelled_out(denoiser: nn.Module) -> AbstractContextManager[object]:
    """In this thread, a denoiser that needs it calls no fused operation while the block runs."""
    # Only where it is needed: the mode makes each of torch's calls slower by microseconds.
    needed = any(base.__module__ in _UNSWITCHED for base in type(denoiser).__mro__)
    return _SpelledOut() if needed else nullcontext()


class _SpelledOut(TorchFunctionMode):
    """Replaces fused operations without gradients."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = ".".join(str(func).split(".")[:2])
        return _PLAIN.get(name, func)(*args, **(kwargs or {}))


def normed_rope(
    q: Tensor,
    k: Tensor,
    freqs_cis: Tensor,
    q_scale: Tensor,
    k_scale: Tensor | None = None,
    epsilon: float = 1e-6,
    rot_dim: int = 0,
) -> tuple[Tensor, Tensor]:
    """RMS norm and rotary embedding of queries and keys `[b, n, h, d]`, whose halves are the pairs that rotate.

    Args:
        freqs_cis: `[..., r/2, 2, 2]`, the rotation of each pair.
        q_scale, k_scale: `[d]`, gains of the norms; the keys' is the queries' where there is none.
        rot_dim: r, how many of the leading entries rotate; 0 for all.
    """
    gains = (q_scale, q_scale if k_scale is None else k_scale)
    normed = (functional.rms_norm(x, x.shape[-1:], gain, epsilon) for x, gain in zip((q, k), gains, strict=True))
    one, other = (_rotated(x, freqs_cis, rot_dim or x.shape[-1]) for x in normed)
    return one, other


def rope(q: Tensor, k: Tensor, freqs_cis: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary embedding of queries and keys `[b, n, h, d]`, whose halves are the pairs that rotate.

    Args:
        freqs_cis: `[..., d/2, 2, 2]`, the rotation of each pair.
    """
    return _rotated(q, freqs_cis, q.shape[-1]), _rotated(k, freqs_cis, k.shape[-1])


_PLAIN: Mapping[str, Callable[..., Any]] = {
    "comfy_kitchen.rms_rope_split_half": normed_rope,
    "comfy_kitchen.apply_rope_split_half": rope,
}
"""What takes the place of the host's fused operations."""


def _rotated(x: Tensor, freqs_cis: Tensor, size: int) -> Tensor:
    one, other = x[..., :size].to(freqs_cis.dtype).chunk(2, dim=-1)
    turned = (freqs_cis[..., i, 0] * one + freqs_cis[..., i, 1] * other for i in (0, 1))
    return torch.cat([*(half.to(x) for half in turned), x[..., size:]], dim=-1)
