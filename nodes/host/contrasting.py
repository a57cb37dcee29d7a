"""Cross-attention to the prompt beside cross-attention to other features (`erasers.guard.AttentionPart`).

The other features are appended to the tokens behind every other node's patch, so that the layer itself makes their keys
and values. Around attention they are taken off again: what other nodes put around attention sees the prompt's tokens
alone, as without guards.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...erasers.guard import AttentionPart
from .acting import OVERRIDE, Sampling, acting_rows, behind, check_own_attention

CONTRAST = "lethe.contrast"
"""Marks attention to features that are not the prompt's."""
Part = tuple[Any, AttentionPart]


class _Appended(threading.local):
    """What stands behind the prompt's tokens in the attention that comes next: parts and their rows."""

    tokens: int = 0
    parts: Sequence[tuple[AttentionPart, Tensor]] = ()


def contrast(options: dict[str, Any], run: Sampling, parts: Sequence[Part], key: str) -> None:
    """Let parts act in the sampling whose transformer options these are.

    Args:
        parts: guards with their parts, in the order they act.
        key: of the run among the options.

    Raises:
        GuardError: another node puts its own computation in the place of cross-attention.
    """
    if not parts:
        return
    check_own_attention(options, parts[0][0].title)
    appended = _Appended()
    patches = options.setdefault("patches", {})
    patches["attn2_patch"] = [*patches.get("attn2_patch", []), _appending(run, parts, appended)]
    options[OVERRIDE] = _around(appended, key, options.get(OVERRIDE))


def _appending(run: Sampling, parts: Sequence[Part], appended: _Appended) -> Callable[..., Any]:
    def patch(n: Tensor, k: Tensor, v: Tensor, extra_options: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        acting = [(part, acting_rows(run, guard, part.window, extra_options, len(k))) for guard, part in parts]
        found = [(part, rows) for part, rows in acting if rows is not None]
        appended.tokens, appended.parts = k.shape[1], found
        if not found:
            return n, k, v
        # Every row gets them, so that the batch stays one tensor; those that the guard leaves alone do not use them.
        others = torch.cat([part.states for part, _ in found]).to(k).expand(len(k), -1, -1)
        return n, torch.cat([k, others], dim=1), torch.cat([v, others], dim=1)

    return patch


def _around(appended: _Appended, key: str, before: Callable[..., Tensor] | None) -> Callable[..., Tensor]:
    def override(func: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        parts, appended.parts, own = appended.parts, (), appended.tokens

        attention = behind(func, before)

        def inner(*given: Tensor, **changed: Any) -> Tensor:
            return attention(*given, *args, **{**kwargs, **changed})

        if not parts:
            return inner(q, k, v)
        said = inner(q, k[:, :own], v[:, :own])
        # Words of the prompt are no words of these features: parts that know the run find none here.
        options = {name: value for name, value in kwargs["transformer_options"].items() if name != key}
        for part, rows in parts:
            here, own = slice(own, own + len(part.states)), own + len(part.states)
            at = rows.to(q.device).nonzero()[:, 0]
            unsaid = inner(q[at], k[at, here], v[at, here], transformer_options={**options, CONTRAST: True})
            said = said.index_copy(0, at, part.mix(said[at], unsaid))
        return said

    return override
