"""Vectors that are added behind a UNet's middle block (`erasers.guard.Middle`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ...erasers.guard import Middle
from .acting import Sampling, acting_rows

_BEHIND = ("output", 0)
"""Where the host hands out what the middle block made."""


def add_behind_middle(options: dict[str, Any], run: Sampling, parts: Sequence[tuple[Any, Middle]]) -> None:
    """Let parts act in the sampling whose transformer options these are, in their order."""
    if parts:
        patches = options.setdefault("patches", {})
        patches["output_block_patch"] = [*patches.get("output_block_patch", []), _adding(run, parts)]


def _adding(run: Sampling, parts: Sequence[tuple[Any, Middle]]) -> Callable[..., tuple[Tensor, Tensor]]:
    def patch(h: Tensor, skip: Tensor, options: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        if options.get("block") != _BEHIND:
            return h, skip
        for guard, part in parts:
            rows = acting_rows(run, guard, part.window, options, len(h))
            if rows is not None:
                at = rows.to(h.device).nonzero()[:, 0]
                h = h.index_add(0, at, part.vector.to(h)[None, :, None, None].expand(len(at), -1, *h.shape[2:]))
        return h, skip

    return patch
