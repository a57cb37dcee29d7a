"""Self-attention that is kept from looking into a mask, for prompts of guards' own (`erasers.redirect.Redirect`)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any
from uuid import UUID

import torch
from torch import Tensor

from ...erasers.errors import GuardError
from ...erasers.redirect import Redirect
from .acting import OVERRIDE, Sampling, behind, check_own_attention, feature_size

Part = tuple[Any, Redirect, Collection[UUID]]
"""A guard, its part, and the conditions whose rows it acts on, by their ids."""


class _Inside(threading.local):
    """Whether the attention that comes next looks from places at places."""

    now: bool = False


def redirect(options: dict[str, Any], run: Sampling, parts: Sequence[Part]) -> None:
    """Let parts act in the sampling whose transformer options these are.

    Raises:
        GuardError: another node puts its own computation in the place of self-attention.
    """
    if not parts:
        return
    check_own_attention(options, parts[0][0].title, "self")
    inside = _Inside()
    patches = options.setdefault("patches", {})
    patches["attn1_patch"] = [*patches.get("attn1_patch", []), _entering(inside)]
    options[OVERRIDE] = _around(inside, run, parts, options.get(OVERRIDE))


def _entering(inside: _Inside) -> Callable[..., Any]:
    def patch(n: Tensor, k: Tensor, v: Tensor, extra_options: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        inside.now = True
        return n, k, v

    return patch


def _around(
    inside: _Inside, run: Sampling, parts: Sequence[Part], before: Callable[..., Tensor] | None
) -> Callable[..., Tensor]:
    def override(func: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        now, inside.now = inside.now, False
        attention = behind(func, before)
        found = attention(q, k, v, *args, **kwargs)
        told = kwargs.get("transformer_options") or {}

        def again(*given: Tensor) -> Tensor:
            return attention(*given, *args, **kwargs)

        for guard, part, uuids in parts if now else ():
            at = _rows(part, uuids, told, q)
            if len(at):
                if q.shape[1] != k.shape[1]:
                    raise GuardError(
                        f"{guard.title} acts in self-attention, to which another node has added.",
                        "Take one of the two out.",
                    )
                size = feature_size(told, q.shape[1])
                changed = part.attend(again, q[at], k[at], v[at], size, run.moment(told))
                found = found if changed is None else found.index_copy(0, at, changed)
        return found

    return override


def _rows(part: Redirect, uuids: Collection[UUID], told: Mapping[str, Any], q: Tensor) -> Tensor:
    """Rows of a batch that a part acts on in this layer."""
    if told.get("block", ("",))[0] not in part.blocks:
        return torch.empty(0, dtype=torch.long)
    each = len(q) // len(told["uuids"])
    acting = [row for row in range(len(q)) if told["uuids"][row // each] in uuids]
    return torch.tensor(acting, dtype=torch.long, device=q.device)
